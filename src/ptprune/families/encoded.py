"""Images and tiles as one ``get_image_features`` call encoded them, kept for the language side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.errors import BrokenPass
from ptprune.layout import Place, Region, even_place

PREVIEW = 12  # pixels a side: enough to distinguish a 3x4 grid of tiles from a 4x3 one, and negligible to store
PICTURE = 64  # pixels a side if a method needs the pixels themselves


@dataclass(frozen=True)
class EvidenceRequest:
    """The evidence that a method needs from the vision side.

    Attributes:
        names: fields of ``ImageEvidence``; families look for "region_features", "token_features" and "pixels".
        window: largest side, in tokens, of the windows that replace tiles in models without tiles; None makes the image
            one region.
    """

    names: frozenset[str]
    window: int | None

    @torch.no_grad()
    def preview(self, pixels: Tensor) -> Tensor:
        """[tiles, channels, height, width] -> FloatTensor [tiles, channels, p, p]."""
        return F.adaptive_avg_pool2d(pixels.float(), PICTURE if "pixels" in self.names else PREVIEW)


@dataclass(frozen=True, eq=False)
class Encoding:
    """What of a call's tiles was encoded.

    Attributes:
        tokens: bool array [tiles, tokens], which of a tile's tokens have features. They are counted before tiles are
            merged into one grid.
        scores: one a tile: how much it needed to be encoded; None where nobody asked.
        borrowed: bool array [tiles], those that have the features of another tile.
    """

    tokens: np.ndarray
    scores: Sequence[float | None]
    borrowed: np.ndarray


@dataclass(frozen=True, eq=False)
class EncodedTiles:
    """All tiles and thumbnails of one call, before the prompt tells which of them make an image.

    Attributes:
        side: LLM tokens a side; a tile is a square of placeholders in the prompt.
        tokens: name in ``ImageEvidence`` -> [tiles * side**2] or [tiles * side**2, d], patches pooled to LLM tokens.
        features: [tiles, d], a feature vector of each: its [CLS], or the mean over its patches.
        previews: FloatTensor [tiles, 3, p, p], tiny copies of their pixels.
        encoding: what was encoded; None: everything.
    """

    side: int
    tokens: dict[str, Tensor]
    features: Tensor | None
    previews: Tensor
    encoding: Encoding | None = None

    @cached_property
    def previews_on_host(self) -> np.ndarray:
        """Read once for all images of the call."""
        return self.previews.cpu().numpy()


@dataclass(frozen=True, eq=False)
class EncodedTile:
    """One of ``tiles``."""

    tiles: EncodedTiles
    index: int

    @property
    def num_placeholders(self) -> int:
        return self.tiles.side**2

    @property
    def preview(self) -> Tensor:
        """FloatTensor [3, p, p]."""
        return self.tiles.previews[self.index]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An encoded image.

    Attributes:
        regions: in the order of the encoder's rows.
        region_of: int array (on the host) [placeholders], the region of each of its placeholders in the prompt; -1 for
            structural ones (newlines), which always stay.
        places: returns where the regions lie in the picture.
        tokens: name in ``ImageEvidence`` -> [placeholders] or [placeholders, d]; structural rows have no meaning.
        features: [num_regions, d], a feature vector of each region: its [CLS], or the mean over its patches.
        whole: [d], the feature vector of the whole image, where no region is a thumbnail.
        preview: FloatTensor [3, height, width], a small copy of the picture, if a method wants "pixels".
        rows: the regions' rows among all that the call encoded.
        encoded: bool array [placeholders], those that have features; None: all.
        scores: one a region: how much it needed to be encoded; None where nobody asked.
        borrowed: whether each region has the features of another; empty: none has.
    """

    regions: tuple[Region, ...]
    region_of: np.ndarray
    places: Callable[[], Sequence[Place]]
    tokens: dict[str, Tensor]
    features: Tensor | None = None
    whole: Tensor | None = None
    preview: Tensor | None = None
    rows: Sequence[int] = ()
    encoded: np.ndarray | None = None
    scores: Sequence[float | None] = ()
    borrowed: Sequence[bool] = ()

    @property
    def num_placeholders(self) -> int:
        return len(self.region_of)


Encoded: TypeAlias = EncodedTile | EncodedImage
"""What one run of placeholders holds: a tile in families with tiles of one size, else an image."""


def check_patches(attention: Mapping[str, Tensor], expected: int) -> None:
    """Check that attention [patches of all images] was recorded once for every patch.

    Raises:
        BrokenPass: if not.
    """
    for values in attention.values():
        if len(values) != expected:
            raise BrokenPass(f"attention of {len(values)} patches was seen where the vision encoder has {expected}")


def whole_picture() -> list[Place]:
    """The place of an image's only region."""
    return [even_place(0, 0, 1, 1)]


def join_tiles(
    tiles: Sequence[EncodedTile], thumbnail: Literal["first", "last"], places: Callable[[], Sequence[Place]]
) -> EncodedImage:
    """Join tiles and their thumbnail into an image. A single tile has no thumbnail.

    Args:
        places: of all regions, including the thumbnail.
    """
    of, first, number = tiles[0].tiles, tiles[0].index, len(tiles)
    which = 0 if thumbnail == "first" else number - 1

    def mine(values: Tensor, rows: int) -> Tensor:
        return values if number * rows == len(values) else values[first * rows : (first + number) * rows]

    regions = [Region((of.side, of.side))] * number
    if number > 1:
        regions[which] = Region((of.side, of.side), True)
    return EncodedImage(
        regions=tuple(regions),
        region_of=np.arange(number).repeat(of.side**2),
        places=whole_picture if number == 1 else places,
        tokens={name: mine(values, of.side**2) for name, values in of.tokens.items()},
        features=None if of.features is None else mine(of.features, 1),
        preview=of.previews[first + which] if of.previews.shape[-1] == PICTURE else None,
        rows=range(first, first + number),
        encoded=None if of.encoding is None else of.encoding.tokens[first : first + number].ravel(),
        scores=() if of.encoding is None else of.encoding.scores[first : first + number],
        borrowed=() if of.encoding is None else of.encoding.borrowed[first : first + number].tolist(),
    )
