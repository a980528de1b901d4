"""InternVL (2.5, 3, 3.5 in the native "-hf" format): row-major tiles, then the thumbnail; InternViT with a [CLS].

An LLM token is a row-major 2x2 block of patches (pixel shuffle). The processor does not pass on how many tiles an
image has, so they are counted: a run of image tokens is one image, with a thumbnail iff it has more than one tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ptprune.errors import UnsupportedModel
from ptprune.families.base import INSTRUCTION, Encoder, Model
from ptprune.families.feature_layer import feature_layer, layer_behind
from ptprune.families.grouping import runs
from ptprune.families.tiled import FRAMES, TiledFamily


class InternVL(TiledFamily):
    name = "internvl"
    model_class = "InternVLForConditionalGeneration"
    example = "OpenGVLab/InternVL3-1B-hf"
    stages = {
        "tiles": "row-major, then a thumbnail if there is more than one tile",
        "region": "cosine of each tile's [CLS] with the thumbnail's",
        "token": "[CLS] attention, mean over the 2x2 patches of a token",
        "instruction": INSTRUCTION,
        "videos": FRAMES,
    }
    grouped = staticmethod(runs)

    @staticmethod
    def check(model: Model) -> None:
        kind = model.config.vision_config.model_type
        if kind != "internvl_vision":
            raise UnsupportedModel(f"InternVL with a vision tower of type {kind!r} has no known [CLS]")

    @staticmethod
    def has_cls(model: Model, call: Mapping[str, Any]) -> bool:
        return True

    @staticmethod
    def encoder(model: Model) -> Encoder:
        tower, block = model.model.vision_tower, round(1 / model.config.downsample_ratio)
        return Encoder(tower, model.model.multi_modal_projector, tower.encoder.layer, block, "attention")

    @staticmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        return layer_behind(model.model.vision_tower.encoder.layer, feature_layer(model, call)).attention

    @staticmethod
    def patch_features(model: Model, call: Mapping[str, Any], output: Any) -> Tensor:
        layer = feature_layer(model, call)
        return output.last_hidden_state if layer == -1 else output.hidden_states[layer]
