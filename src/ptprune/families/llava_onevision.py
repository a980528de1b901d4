"""LLaVA-OneVision: like LLaVA-NeXT, but with SigLIP without [CLS], and the model shrinks large grids.

Several pictures in one prompt are not tiled. Shrinking is bilinear, of features and scores alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ptprune.families.base import INSTRUCTION, NOT_PRUNED, Model
from ptprune.families.merged import MergedFamily


class LlavaOnevision(MergedFamily):
    name = "llava-onevision"
    model_class = "LlavaOnevisionForConditionalGeneration"
    example = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    stages = {
        "tiles": "thumbnail first, then one unpadded, possibly shrunk grid with rows across neighbouring tiles; "
        "newlines stay; several pictures in one prompt are not tiled",
        "region": "cosine of each tile's mean patch feature with the thumbnail's (SigLIP has no [CLS])",
        "token": "attention received from the tile's patches; a token is a patch, or several if the grid was shrunk",
        "instruction": INSTRUCTION,
        "videos": NOT_PRUNED,
    }

    shrinks = True

    @staticmethod
    def tiled(call: Mapping[str, Any], images: int) -> list[bool]:
        numbers = call.get("batch_num_images")
        return [True] * images if numbers is None else [n == 1 for n in numbers for _ in range(n)]

    @staticmethod
    def pack(
        model: Model, call: Mapping[str, Any], features: Sequence[Tensor], image_sizes: Tensor, newline: Tensor
    ) -> list[Tensor]:
        ratio = call.get("vision_aspect_ratio") or model.config.vision_aspect_ratio
        pack = model.model.pack_image_features
        return pack(features, image_sizes, image_newline=newline, vision_aspect_ratio=ratio)[0]
