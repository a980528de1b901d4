"""LLaVA-NeXT (1.6): the thumbnail, then all tiles as one unpadded grid with newlines; CLIP with a [CLS].

An LLM token is a patch. The features come from the last layer but one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ptprune.families.base import INSTRUCTION, Model
from ptprune.families.merged import MergedFamily


class LlavaNext(MergedFamily):
    name = "llava-next"
    model_class = "LlavaNextForConditionalGeneration"
    example = "llava-hf/llava-v1.6-mistral-7b-hf"
    stages = {
        "tiles": "thumbnail first, then one unpadded grid with rows across neighbouring tiles; newlines stay",
        "region": "cosine of each tile's [CLS] with the thumbnail's",
        "token": "[CLS] attention at the layer whose features the model uses, the last but one; a token is a patch",
        "instruction": INSTRUCTION,
    }

    @staticmethod
    def pack(
        model: Model, call: Mapping[str, Any], features: Sequence[Tensor], image_sizes: Tensor, newline: Tensor
    ) -> list[Tensor]:
        strategy = model.config.vision_feature_select_strategy
        return model.model.pack_image_features(features, image_sizes, strategy, image_newline=newline)[0]
