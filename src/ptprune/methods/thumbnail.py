"""What the thumbnail's attention says about the tiles; both HiRED and GlobalCom2 let it guide the budgets."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.layout import Place
from ptprune.methods.common import members
from ptprune.scores.evidence import ImageEvidence


def attention_shares(image: ImageEvidence, attention: Tensor) -> Tensor:
    """The share of attention that falls on each region's part of the picture.

    It is the thumbnail's attention, cut at the tiles' boxes (a token that a box cuts counts by area); in an image
    without a thumbnail, what the region's own tokens get.

    Args:
        attention: FloatTensor [num_tokens].

    Returns:
        DoubleTensor (CPU) [num_regions] that sums to 1; 0 for the thumbnail itself.
    """
    layout, tokens = image.layout, members(image)
    if layout.thumbnail is None:
        masses = torch.stack([attention[mine].cpu().double().sum() for mine in tokens])
    else:
        rows, columns = layout.regions[layout.thumbnail].grid
        seen = attention[tokens[layout.thumbnail]].cpu().double().view(rows, columns)
        masses = torch.stack(
            [_overlap(rows, p.box[1::2]) @ seen @ _overlap(columns, p.box[::2]) for p in _places(image)]
        )
        masses[layout.thumbnail] = 0
    return masses / masses.sum().clamp(min=torch.finfo(masses.dtype).tiny)


def seen_from_thumbnail(image: ImageEvidence, attention: Tensor) -> Tensor:
    """The thumbnail's attention at every token's place in the picture, interpolated bilinearly.

    Args:
        attention: FloatTensor [num_tokens] of an image with a thumbnail.

    Returns:
        FloatTensor [num_tokens]; the thumbnail's own tokens get their own.
    """
    layout, tokens = image.layout, members(image)
    assert layout.thumbnail is not None
    rows, columns = layout.regions[layout.thumbnail].grid
    small = attention[tokens[layout.thumbnail]].view(rows, columns)
    seen = attention.clone()
    for number, (region, place, mine) in enumerate(zip(layout.regions, _places(image), tokens, strict=True)):
        if number != layout.thumbnail:
            down = _interpolation(rows, region.grid[0], place.box[1::2]).to(small)
            across = _interpolation(columns, region.grid[1], place.box[::2]).to(small)
            seen[mine] = (down @ small @ across.T).flatten()
    return seen


def _places(image: ImageEvidence) -> list[Place]:
    return list(image.layout.places())


def _overlap(cells: int, span: tuple[float, ...]) -> Tensor:
    """How much of each of ``cells`` equal cells lies in the span, a part of 0..1: DoubleTensor [cells]."""
    low, high = (end * cells for end in span)
    left = torch.arange(cells, dtype=torch.double)
    return ((left + 1).clamp(max=high) - left.clamp(min=low)).clamp(min=0)


def _interpolation(cells: int, points: int, span: tuple[float, ...]) -> Tensor:
    """Linear interpolation between the centres of ``cells`` cells, at the centres of ``points`` cells of the span.

    Beyond the outermost centres the value stays. Returns DoubleTensor [points, cells].
    """
    low, high = span
    centres = low + (torch.arange(points, dtype=torch.double) + 0.5) / points * (high - low)
    at = (centres * cells - 0.5).clamp(0, cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0)
