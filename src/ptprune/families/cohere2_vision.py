"""Cohere2 Vision: tiles row-major, thumbnail last, SigLIP without [CLS].

An LLM token is a row-major block of patches (pixel shuffle). A start token precedes an image, a line break ends each of
its tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ptprune.families.base import INSTRUCTION, Model
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
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        return model.model.vision_tower.encoder.layers[-1].self_attn

    @staticmethod
    def patch_features(model: Model, call: Mapping[str, Any], output: Any) -> Tensor:
        return output.last_hidden_state

    @staticmethod
    def pixels(call: Mapping[str, Any]) -> Tensor:
        return call["pixel_values"]

    @staticmethod
    def images(gaps: Sequence[Sequence[int]], parts: Sequence[EncodedImage]) -> list[EncodedImage]:
        return [join_by_pixels(parts[run.start : run.stop]) for run in started_by_mark(gaps)]
