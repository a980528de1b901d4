"""The thumbnail's attention, mapped onto the tiles. HiRED and GlobalCom2 derive budgets from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.region import inside


def guiding(image: ImageEvidence, attention: Tensor) -> Tensor:
    """What ``attention_shares`` needs on the host, of attention [num_tokens]: the thumbnail's, or all without one."""
    thumbnail = image.layout.thumbnail
    return attention if thumbnail is None else attention[image.layout.members()[thumbnail]]


def attention_shares(image: ImageEvidence, attention: Sequence[float]) -> list[float]:
    """The share of attention that falls on each region's part of the picture.

    The thumbnail's attention is cut at the tiles' boxes; a token that a box cuts counts by area. Without a thumbnail,
    the attention on each region's own tokens counts.

    Args:
        attention: the values of ``guiding``.

    Returns:
        A number a region: they sum to 1, to nine digits; 0 for the thumbnail itself.
    """
    layout, seen = image.layout, np.array(attention)
    if layout.thumbnail is None:
        found = np.array([seen[tokens].sum() for tokens in layout.members_on_host()])
    else:
        seen = seen.reshape(layout.regions[layout.thumbnail].grid)
        down, across = inside(seen.shape, layout.places())
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in (p.box for p in layout.places())]
        found = ((down @ seen) * across).sum(axis=1) * np.array(areas)
        found[layout.thumbnail] = 0
    # rounded, so that rounding noise of the sums does not favour one of two equal tiles
    return (found / max(found.sum(), np.finfo(np.float64).tiny)).round(9).tolist()


def seen_from_thumbnail(image: ImageEvidence, attention: Tensor) -> Tensor:
    """The thumbnail's attention at every token's place in the picture, interpolated bilinearly.

    Args:
        attention: FloatTensor [num_tokens] of an image with a thumbnail.

    Returns:
        FloatTensor [num_tokens]; the thumbnail's tokens keep their own attention.
    """
    layout, members = image.layout, image.layout.members_on_host()
    assert layout.thumbnail is not None
    rows, columns = layout.regions[layout.thumbnail].grid
    small = guiding(image, attention).view(rows, columns)
    # every tile as large as the largest, so that one product serves all; ``slots`` leaves the padding out
    high, wide = (max(sides) for sides in zip(*(region.grid for region in layout.regions), strict=True))
    down, across = np.zeros((len(members), high, rows)), np.zeros((len(members), columns, wide))
    slots = np.zeros(layout.num_tokens, np.int64)
    for number, (region, place) in enumerate(zip(layout.regions, layout.places(), strict=True)):
        (height, width), (left, top, right, bottom) = region.grid, place.box
        down[number, :height] = _interpolation(rows, height, top, bottom)
        across[number, :, :width] = _interpolation(columns, width, left, right).T
        slots[members[number]] = (
            np.arange(number * high, number * high + height)[:, None] * wide + np.arange(width)
        ).flat
    seen = (layout.upload(down).to(small) @ small @ layout.upload(across).to(small)).flatten()
    return seen[layout.upload(slots)]


def _interpolation(cells: int, points: int, low: float, high: float) -> np.ndarray:
    """Weights that interpolate ``cells`` values over 0..1 linearly, at ``points`` cell centres between low and high.

    Values are constant beyond the outermost centres. Returns a float64 array [points, cells].
    """
    centres = low + (np.arange(points) + 0.5) / points * (high - low)
    at = (centres * cells - 0.5).clip(0, cells - 1)
    return (1 - np.abs(at[:, None] - np.arange(cells))).clip(min=0)
