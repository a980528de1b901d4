"""Cohere2 Vision: tiles row-major, thumbnail last, SigLIP without [CLS].

An LLM token is a row-major block of patches (pixel shuffle). A start token precedes an image, a line break ends each of
its tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptprune.families.base import INSTRUCTION
from ptprune.families.encoded import EncodedImage
from ptprune.families.grid import join_by_pixels
from ptprune.families.grouping import started_by_mark
from ptprune.families.tiled import STAGES_WITHOUT_CLS, TiledFamily


class Cohere2Vision(TiledFamily):
    name = "cohere2-vision"
    model_class = "Cohere2VisionForConditionalGeneration"
    example = "CohereLabs/command-a-vision-07-2025"
    stages = {**STAGES_WITHOUT_CLS, "instruction": f"{INSTRUCTION}; most layers see only a sliding window"}

    @staticmethod
    def images(gaps: Sequence[Sequence[int]], parts: Sequence[EncodedImage]) -> list[EncodedImage]:
        return [join_by_pixels(parts[run.start : run.stop]) for run in started_by_mark(gaps)]
