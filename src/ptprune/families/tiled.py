"""Families in which every tile and thumbnail is a run of placeholders of one length: a square of LLM tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ptprune.errors import BrokenPass
from ptprune.families.base import INSTRUCTION, Family, Model
from ptprune.families.encoded import EncodedImage, EncodedTile, EncodedTiles, Encoding, EvidenceRequest
from ptprune.families.grid import join_by_pixels

STAGES_WITHOUT_CLS = {
    "tiles": "row-major, then a thumbnail if there is more than one tile",
    "region": "cosine of each tile's mean patch feature with the thumbnail's (SigLIP has no [CLS])",
    "token": "attention received from the tile's patches, mean over the patches of a token",
    "instruction": INSTRUCTION,
}
FRAMES = "pruned frame by frame: every frame is an image of one tile"


class TiledFamily(Family):
    """``encoded`` returns tiles. A family overrides ``grouped``, which groups them into images.

    The defaults fit models that use the last features of a SigLIP.
    """

    @staticmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        return model.model.vision_tower.encoder.layers[-1].self_attn

    @staticmethod
    def patch_features(model: Model, call: Mapping[str, Any], output: Any) -> Tensor:
        """[tiles, patches, d], the features that the projector sees, preceded by the [CLS] if there is one."""
        return output.last_hidden_state

    @staticmethod
    def pixels(call: Mapping[str, Any]) -> Tensor:
        """The tiles' pixels in the encoder's order: [tiles, 3, height, width]."""
        return call["pixel_values"]

    @classmethod
    def images(cls, gaps: Sequence[Sequence[int]], encoded: Sequence[EncodedTile]) -> list[EncodedImage]:
        groups = [slice(run.start, run.stop) for run in cls.grouped(gaps)]
        return [cls.joined(gaps[group], encoded[group]) for group in groups]

    @staticmethod
    def grouped(gaps: Sequence[Sequence[int]]) -> list[range]:
        """Ranges of a prompt's tiles that make an image, see ``grouping``."""
        raise NotImplementedError

    @staticmethod
    def joined(gaps: Sequence[Sequence[int]], tiles: Sequence[EncodedTile]) -> EncodedImage:
        """Join row-major tiles and, last, their thumbnail into an image."""
        return join_by_pixels(tiles)

    @classmethod
    def encoded(
        cls,
        model: Model,
        call: Mapping[str, Any],
        output: Any,
        attention: Mapping[str, Tensor],
        wanted: EvidenceRequest,
        encoding: Encoding | None = None,
    ) -> list[EncodedTile]:
        previews = wanted.preview(cls.pixels(call))
        count, placeholders = len(previews), output_length(output) // len(previews)
        side, has_cls = round(placeholders**0.5), cls.has_cls(model, call)
        tokens = {name: pool_to(side, patches.view(count, -1)).flatten() for name, patches in attention.items()}
        features = None
        if wanted.names & {"region_features", "token_features"}:
            patches = cls.patch_features(model, call, output)
            # a copy, or these few rows would hold on to all of the encoder's output during the prefill
            features = patches[:, 0].clone() if has_cls else patches.mean(dim=1)
            if "token_features" in wanted.names:
                tokens["token_features"] = pool_to(side, patches[:, 1:] if has_cls else patches).flatten(0, 1)
        tiles = EncodedTiles(side, tokens, features, previews, encoding)
        return [EncodedTile(tiles, index) for index in range(count)]


def output_length(output: Any) -> int:
    """The number of placeholders that a call's image features fill."""
    features = output.pooler_output
    parts = [features] if isinstance(features, Tensor) else features
    return sum(part.shape[:-1].numel() for part in parts)


def pool_to(side: int, values: Tensor) -> Tensor:
    """Average patches over the square blocks that make the LLM tokens of a tile.

    Args:
        side: tokens a side.
        values: [tiles, patches] or [tiles, patches, d], patches row-major on a square grid.

    Returns:
        [tiles, side**2] or [tiles, side**2, d], tokens row-major.

    Raises:
        BrokenPass: if the patches do not make such blocks.
    """
    patches = round(values.shape[1] ** 0.5)
    if patches**2 != values.shape[1] or patches % side:
        raise BrokenPass(
            f"attention or features of {values.shape[1]} patches do not make a tile of {side}x{side} tokens"
        )
    if values.ndim == 2:
        return F.avg_pool2d(values.unflatten(1, (patches, patches)), patches // side).flatten(1)
    grid = values.unflatten(1, (patches, patches)).permute(0, 3, 1, 2)
    return F.avg_pool2d(grid, patches // side).flatten(2).transpose(1, 2)
