"""InternVL (2.5, 3, 3.5 in the native "-hf" format): tiles row-major, thumbnail last, InternViT with a [CLS].

An LLM token is a row-major 2x2 block of patches (pixel shuffle). The processor does not pass on how many tiles an
image has, so they are counted: a run of image tokens is one image, a thumbnail is there iff it has more than one tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.families.base import EncodedImages, Family, Model
from ptprune.families.grid import infer_columns
from ptprune.layout import Region

PREVIEW = 12  # pixels a side: enough to tell a 3x4 grid from a 4x3 one, nothing to store


class InternVL(Family):
    name = "internvl"
    model_class = "InternVLForConditionalGeneration"
    example = "OpenGVLab/InternVL3-1B-hf"
    stages = {
        "tiles": "row-major, thumbnail last where there is more than one tile; videos: every frame is a one-tile image",
        "region": "cosine of each tile's [CLS] with the thumbnail's",
        "token": "[CLS] attention at the ViT layer whose features the model uses, mean over heads, mean over the 2x2 "
        "patches of a token",
        "instruction": "attention of the text after the last image at the LLM layer before the cut",
    }

    @staticmethod
    def check(model: Model) -> None:
        vision, text = model.config.vision_config, model.config.text_config
        if vision.model_type != "internvl_vision":
            raise TypeError(f"InternVL with a vision tower of type {vision.model_type!r} has no known [CLS]")
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise TypeError(
                f"language models with {', '.join(sorted(kinds - {'full_attention'}))} layers are not supported: "
                "the caches of their layers have different lengths"
            )

    @staticmethod
    def multimodal(model: Model) -> Model:
        return model.model

    @staticmethod
    def decoder(model: Model) -> Model:
        return model.model.language_model

    @staticmethod
    def text_attention(model: Model, layer: int) -> Model:
        return model.model.language_model.layers[layer].self_attn

    @staticmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        layers = model.model.vision_tower.encoder.layer
        feature_layer = _feature_layer(model, call)
        # hidden_states[0] is the embedding, so hidden_states[i] is the output of layer i - 1
        return layers[feature_layer if feature_layer < 0 else max(feature_layer - 1, 0)].attention

    @staticmethod
    def encoded(
        model: Model, call: Mapping[str, Any], output: Any, cls_row: Tensor | None, features: bool
    ) -> EncodedImages:
        cls_features = None
        if features:
            feature_layer = _feature_layer(model, call)
            states = output.last_hidden_state if feature_layer == -1 else output.hidden_states[feature_layer]
            cls_features = states[:, 0]
        pooled = None if cls_row is None else pool_patches(cls_row, round(1 / model.config.downsample_ratio))
        preview = F.adaptive_avg_pool2d(call["pixel_values"].float(), PREVIEW)
        return EncodedImages(cls_features, pooled, preview, tokens_per_row=output.pooler_output.shape[1])

    @staticmethod
    def placeholders(model: Model, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        token = model.config.image_token_id
        if input_ids is not None:
            return input_ids == token
        assert inputs_embeds is not None
        embedding = model.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
        return (inputs_embeds == embedding.to(inputs_embeds.device)).all(-1)

    @staticmethod
    def regions(encoded: EncodedImages, num_tokens: int) -> tuple[Region, ...]:
        size = encoded.tokens_per_row
        count, rest = divmod(num_tokens, size)
        if rest:
            raise ValueError(f"a run of {num_tokens} image tokens is not a whole number of tiles of {size} tokens")
        return tuple(Region(i * size, (i + 1) * size, is_thumbnail=0 < i == count - 1) for i in range(count))

    @staticmethod
    def places(previews: Tensor, regions: tuple[Region, ...]) -> list[tuple[int, int]]:
        tiles = len(regions) - any(region.is_thumbnail for region in regions)
        columns = infer_columns(previews[:tiles], previews[-1]) if tiles > 1 else 1
        places = [divmod(tile, columns) for tile in range(tiles)]
        return places + [(-1, -1)] * (len(regions) - tiles)


def pool_patches(values: Tensor, block: int) -> Tensor:
    """Mean over the ``block`` x ``block`` patches that pixel shuffle packs into one LLM token.

    Args:
        values: [tiles, patches], patches row-major on a square grid.

    Returns:
        [tiles, patches / block**2], tokens row-major.
    """
    side = round(values.shape[1] ** 0.5)
    return F.avg_pool2d(values.reshape(-1, 1, side, side), block).flatten(1)


def _feature_layer(model: Model, call: Mapping[str, Any]) -> int:
    layer = call.get("vision_feature_layer")
    layer = model.config.vision_feature_layer if layer is None else layer
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer must be one layer, got {layer}")
    return layer
