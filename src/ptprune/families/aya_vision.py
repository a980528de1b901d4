"""Aya Vision: row-major tiles, then the thumbnail; SigLIP without [CLS].

An LLM token is a row-major block of patches (pixel shuffle). Text before each tile names it: "TILE_1", "TILE_2", ...,
and "TILE_GLOBAL" before the thumbnail. An image of one tile is only a "TILE_GLOBAL".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ptprune.errors import UnsupportedModel
from ptprune.families.base import INSTRUCTION, Encoder, Model
from ptprune.families.feature_layer import feature_layer, layer_behind
from ptprune.families.grouping import ended_by_mark
from ptprune.families.tiled import STAGES_WITHOUT_CLS, TiledFamily


class AyaVision(TiledFamily):
    name = "aya-vision"
    model_class = "AyaVisionForConditionalGeneration"
    example = "CohereLabs/aya-vision-8b"
    stages = {**STAGES_WITHOUT_CLS, "instruction": f"{INSTRUCTION}; most layers have a sliding window"}
    grouped = staticmethod(ended_by_mark)

    @staticmethod
    def check(model: Model) -> None:
        strategy = model.config.vision_feature_select_strategy
        if strategy != "full":
            raise UnsupportedModel(
                f"Aya Vision with vision_feature_select_strategy={strategy!r} is not supported, only 'full'"
            )

    @staticmethod
    def encoder(model: Model) -> Encoder:
        tower = model.model.vision_tower
        return Encoder(tower, model.model.multi_modal_projector, tower.encoder.layers, model.config.downsample_factor)

    @staticmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        return layer_behind(model.model.vision_tower.encoder.layers, feature_layer(model, call)).self_attn

    @staticmethod
    def patch_features(model: Model, call: Mapping[str, Any], output: Any) -> Tensor:
        return output.hidden_states[feature_layer(model, call)]
