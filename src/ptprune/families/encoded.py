"""What the vision side of one ``get_image_features`` call leaves behind for the language side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.errors import BrokenPass
from ptprune.layout import Place, Region, even_place

PREVIEW = 12  # pixels a side: enough to tell a 3x4 grid of tiles from a 4x3 one, nothing to store
PICTURE = 64  # pixels a side of a picture that a method looks at itself


@dataclass(frozen=True)
class EvidenceRequest:
    """What a method wants to know of the images.

    Attributes:
        names: fields of ``ImageEvidence``; families look for "region_features", "token_features" and "pixels".
        window: tokens a side of the windows that stand for tiles where a model has none; None: one region an image.
    """

    names: frozenset[str]
    window: int | None

    def preview(self, pixels: Tensor) -> Tensor:
        """[tiles, channels, height, width] -> FloatTensor [tiles, channels, p, p]."""
        return F.adaptive_avg_pool2d(pixels.float(), PICTURE if "pixels" in self.names else PREVIEW)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image as it was encoded, or, in families whose prompts alone tell which tiles make an image, one tile.

    Attributes:
        regions: in the order of the encoder's rows.
        region_of: LongTensor (CPU) [placeholders], the region of each of its placeholders in the prompt, -1 for
            structural ones (newlines), which always stay.
        places: tells where the regions lie in the picture.
        tokens: name in ``ImageEvidence`` -> [placeholders, d], values of patches pooled to LLM tokens; structural ones
            hold anything.
        features: [num_regions, d], a feature vector of each region: its [CLS], or the mean over its patches.
        whole: [d], the feature vector of the whole image, where no region is a thumbnail.
        preview: FloatTensor [3, height, width], where somebody looks at it: a tiny copy of the pixels of a tile, of the
            whole picture once tiles are joined.
    """

    regions: tuple[Region, ...]
    region_of: Tensor
    places: Callable[[], Sequence[Place]]
    tokens: dict[str, Tensor]
    features: Tensor | None = None
    whole: Tensor | None = None
    preview: Tensor | None = None

    @property
    def num_placeholders(self) -> int:
        return len(self.region_of)


def check_patches(attention: Mapping[str, Tensor], expected: int) -> None:
    """The vision encoder's attention must have been seen for every patch, and once.

    Args:
        attention: name in ``ImageEvidence`` -> FloatTensor [patches of all images].

    Raises:
        BrokenPass: naming both numbers.
    """
    for values in attention.values():
        if len(values) != expected:
            raise BrokenPass(f"attention of {len(values)} patches was seen where the vision encoder has {expected}")


def whole_picture() -> list[Place]:
    """The place of an image's only region."""
    return [even_place(0, 0, 1, 1)]


def join_tiles(
    tiles: Sequence[EncodedImage], thumbnail: Literal["first", "last"], places: Callable[[], Sequence[Place]]
) -> EncodedImage:
    """The image that a thumbnail and tiles make; a single tile has no thumbnail.

    Args:
        places: those of all regions, the thumbnail included.
    """
    if len(tiles) == 1:
        return tiles[0]
    which = 0 if thumbnail == "first" else len(tiles) - 1
    regions = tuple(
        replace(region, is_thumbnail=index == which) for index, tile in enumerate(tiles) for region in tile.regions
    )
    region_of = torch.cat([tile.region_of + index for index, tile in enumerate(tiles)])
    tokens = {name: torch.cat([tile.tokens[name] for tile in tiles]) for name in tiles[0].tokens}
    features = [tile.features for tile in tiles if tile.features is not None]
    return EncodedImage(
        regions, region_of, places, tokens, torch.cat(features) if features else None, preview=tiles[which].preview
    )
