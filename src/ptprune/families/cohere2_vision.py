"""Cohere2 Vision: tiles row-major, thumbnail last, SigLIP without [CLS].

An LLM token is a row-major block of patches (pixel shuffle). A start token precedes an image, a line break ends each of
its tiles.
"""

from __future__ import annotations

from ptprune.families.base import INSTRUCTION
from ptprune.families.grouping import started_by_mark
from ptprune.families.tiled import STAGES_WITHOUT_CLS, TiledFamily


class Cohere2Vision(TiledFamily):
    name = "cohere2-vision"
    model_class = "Cohere2VisionForConditionalGeneration"
    example = "CohereLabs/command-a-vision-07-2025"
    stages = {**STAGES_WITHOUT_CLS, "instruction": f"{INSTRUCTION}; most layers see only a sliding window"}
    grouped = staticmethod(started_by_mark)
