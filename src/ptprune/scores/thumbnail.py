"""The thumbnail's attention, mapped onto the tiles. HiRED and GlobalCom2 derive budgets from it."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.region import mean_inside


def attention_shares(image: ImageEvidence, attention: Tensor) -> Tensor:
    """The share of attention that falls on each region's part of the picture.

    The thumbnail's attention is cut at the tiles' boxes; a token that a box cuts counts by area. Without a thumbnail,
    the attention on each region's own tokens counts.

    Args:
        attention: FloatTensor [num_tokens].

    Returns:
        DoubleTensor (CPU) [num_regions] that sums to 1, to nine digits; 0 for the thumbnail itself.
    """
    layout, tokens = image.layout, image.layout.members()
    if layout.thumbnail is None:
        masses = torch.stack([attention[mine].cpu().double().sum() for mine in tokens])
    else:
        seen = attention[tokens[layout.thumbnail]].cpu().double().view(layout.regions[layout.thumbnail].grid)
        boxes = [place.box for place in layout.places()]
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
        masses = mean_inside(seen, image) * torch.tensor(areas, dtype=torch.double)
        masses[layout.thumbnail] = 0
    # rounded, so that rounding noise of the sums does not favour one of two equal tiles
    return (masses / masses.sum().clamp(min=torch.finfo(masses.dtype).tiny)).round(decimals=9)


def seen_from_thumbnail(image: ImageEvidence, attention: Tensor) -> Tensor:
    """The thumbnail's attention at every token's place in the picture, interpolated bilinearly.

    Args:
        attention: FloatTensor [num_tokens] of an image with a thumbnail.

    Returns:
        FloatTensor [num_tokens]; the thumbnail's tokens keep their own attention.
    """
    layout, tokens = image.layout, image.layout.members()
    assert layout.thumbnail is not None
    rows, columns = layout.regions[layout.thumbnail].grid
    small = attention[tokens[layout.thumbnail]].view(rows, columns)
    seen = attention.clone()
    for number, (region, place, mine) in enumerate(zip(layout.regions, layout.places(), tokens, strict=True)):
        if number != layout.thumbnail:
            left, top, right, bottom = place.box
            down = _interpolation(rows, region.grid[0], top, bottom).to(small)
            across = _interpolation(columns, region.grid[1], left, right).to(small)
            seen[mine] = (down @ small @ across.T).flatten()
    return seen


def _interpolation(cells: int, points: int, low: float, high: float) -> Tensor:
    """Weights that interpolate ``cells`` values over 0..1 linearly, at ``points`` cell centres between low and high.

    Values are constant beyond the outermost centres. Returns DoubleTensor [points, cells].
    """
    centres = low + (torch.arange(points, dtype=torch.double) + 0.5) / points * (high - low)
    at = (centres * cells - 0.5).clamp(0, cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0)
