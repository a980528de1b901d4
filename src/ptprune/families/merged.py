"""Families that merge an image's tiles into one unpadded grid after the thumbnail: LLaVA-NeXT and LLaVA-OneVision.

A newline embedding ends each row of the grid. To learn which patch goes where, this file passes patch coordinates
instead of features through the model's own ``pack_image_features``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from ptprune.families.base import Encoder, Model, WholeImages
from ptprune.families.encoded import EncodedImage, Encoding, EvidenceRequest, check_patches, whole_picture
from ptprune.families.feature_layer import feature_layer, layer_behind
from ptprune.layout import THUMBNAIL, Place, Region


class MergedFamily(WholeImages):
    """``encoded`` returns whole images, because ``image_sizes`` shows which tiles belong together.

    Attributes:
        shrinks: whether the model shrinks large grids, which mixes neighbouring patches.
    """

    shrinks: ClassVar[bool] = False

    @staticmethod
    def tiled(call: Mapping[str, Any], images: int) -> list[bool]:
        """Whether each image is tiled."""
        return [True] * images

    @staticmethod
    @abstractmethod
    def pack(
        model: Model, call: Mapping[str, Any], features: Sequence[Tensor], image_sizes: Tensor, newline: Tensor
    ) -> list[Tensor]:
        """The model's own packing: [tiles, patches, d] of each image -> [placeholders, d]; ``newline``: [d]."""

    @classmethod
    def has_cls(cls, model: Model, call: Mapping[str, Any]) -> bool:
        strategy = call.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy
        return strategy == "default"  # it means "drop the first token"

    @staticmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        return layer_behind(model.model.vision_tower.encoder.layers, feature_layer(model, call)).self_attn

    @classmethod
    def encoder(cls, model: Model) -> Encoder:
        tower = model.model.vision_tower
        return Encoder(tower, model.model.multi_modal_projector, tower.encoder.layers, mixed=cls.shrinks)

    @classmethod
    def encoded(
        cls,
        model: Model,
        call: Mapping[str, Any],
        output: Any,
        attention: Mapping[str, Tensor],
        wanted: EvidenceRequest,
        encoding: Encoding | None = None,
    ) -> list[EncodedImage]:
        sizes = call["image_sizes"].cpu()
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        tile_grids = [
            _tile_grid(model, size) if tiled else None
            for size, tiled in zip(sizes.tolist(), cls.tiled(call, len(sizes)), strict=True)
        ]
        counts = [1 if grid is None else 1 + grid[0] * grid[1] for grid in tile_grids]
        check_patches(attention, sum(counts) * side**2)

        values = {name: patches.view(-1, side * side, 1) for name, patches in attention.items()}
        features: Sequence[Any] = [None] * len(counts)
        if wanted.names & {"region_features", "token_features"}:
            patches, has_cls = output.hidden_states[feature_layer(model, call)], cls.has_cls(model, call)
            features = (patches[:, 0].clone() if has_cls else patches.mean(dim=1)).split(counts)
            if "token_features" in wanted.names:
                values["token_features"] = patches[:, 1:] if has_cls else patches

        def pack(tiles: Sequence[Tensor]) -> list[Tensor]:
            return cls.pack(model, call, tiles, sizes, tiles[0].new_full(tiles[0].shape[-1:], nan))

        where = pack([_coordinates(grid, side) for grid in tile_grids])
        packed = {name: pack(patches.split(counts)) for name, patches in values.items()}
        packed |= {name: [image[:, 0] for image in packed[name]] for name in attention}
        previews: Any = [None] * len(counts)
        if "pixels" in wanted.names:
            pixels = call["pixel_values"]
            if pixels.ndim == 4:  # the tiles of all images in one list
                pixels = torch.stack([tiles[0] for tiles in pixels.split(counts)])[:, None]
            previews = wanted.preview(pixels[:, 0])
        made: Any = [None] * len(counts)
        if encoding is not None:
            # a token that is mixed from several patches has features if all of these were encoded
            shares = pack(torch.from_numpy(encoding.tokens).float()[..., None].split(counts))
            made = [(image[:, 0] > 1 - 1e-6).numpy() for image in shares]
        images, first = [], 0
        for i, grid in enumerate(tile_grids):
            image = _image(where[i], grid, side, {name: tokens[i] for name, tokens in packed.items()}, features[i])
            rows = [first + row for row in image.rows]
            scores = () if encoding is None else [encoding.scores[row] for row in rows]
            borrowed = () if encoding is None else encoding.borrowed[rows].tolist()
            told = {"encoded": made[i], "scores": scores, "borrowed": borrowed}
            images.append(replace(image, preview=previews[i], rows=rows, **told))
            first += counts[i]
        return images


def _tile_grid(model: Model, image_size: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of the tiles of an image of (height, width) pixels, without the thumbnail."""
    height, width = select_best_resolution(tuple(image_size), model.config.image_grid_pinpoints)
    tile = model.config.vision_config.image_size
    return height // tile, width // tile


def _coordinates(grid: tuple[int, int] | None, side: int) -> Tensor:
    """FloatTensor [thumbnail and tiles, patches, 2]: each patch's (row, column) in the thumbnail or the whole grid."""
    inside = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    if grid is None:
        return inside[None]
    tiles = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).float() * side
    return torch.cat([inside[None], tiles[:, None] + inside])


def _image(
    where: Tensor, grid: tuple[int, int] | None, side: int, tokens: dict[str, Tensor], features: Tensor | None
) -> EncodedImage:
    """Build an image from the packed coordinates of its patches.

    Args:
        where: FloatTensor [placeholders, 2], ``_coordinates`` after packing, NaN on newlines.
        grid: (rows, columns) of the tiles.
        features: [thumbnail and tiles, d].
    """
    region_of = np.full(len(where), -1)
    region_of[: side * side] = 0
    merged = where[side * side :]
    newlines = merged[:, 0].isnan()
    if grid is None or bool(newlines.all()):  # unpadding may leave nothing of a very narrow picture
        first = None if features is None else features[:1]
        return EncodedImage((Region((side, side)),), region_of, whole_picture, tokens, first, rows=[0])
    height = int(newlines.sum())
    rows, columns = merged.view(height, -1, 2)[:, 0, 0], merged.view(height, -1, 2)[0, :-1, 1]
    # use the patches' centres, because shrinking makes coordinates fractional
    tile_of = [((line + 0.5) / side).long().tolist() for line in (rows, columns)]
    spans = [[(tile, line.index(tile), line.count(tile)) for tile in sorted(set(line))] for line in tile_of]

    regions, places, encoder_rows = [Region((side, side), is_thumbnail=True)], [THUMBNAIL], [0]
    numbers = np.full((height, len(columns) + 1), -1)
    for row, top, tall in spans[0]:
        for column, left, wide in spans[1]:
            numbers[top : top + tall, left : left + wide] = len(regions)
            edges = (left / len(columns), top / height, (left + wide) / len(columns), (top + tall) / height)
            places.append(Place(row, column, edges))
            regions.append(Region((tall, wide)))
            encoder_rows.append(1 + row * grid[1] + column)  # unpadding may have removed whole tiles
    region_of[side * side :] = numbers.ravel()
    features = None if features is None else features[encoder_rows]
    return EncodedImage(tuple(regions), region_of, lambda: places, tokens, features, rows=encoder_rows)
