"""The thumbnail's attention, mapped onto the tiles. HiRED and GlobalCom2 derive budgets from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.region import inside


def attention_shares(image: ImageEvidence, attention: Tensor) -> list[float]:
    """The share of attention that falls on each region's part of the picture.

    The thumbnail's attention is cut at the tiles' boxes; a token that a box cuts counts by area. Without a thumbnail,
    the attention on each region's own tokens counts.

    Args:
        attention: FloatTensor [num_tokens].

    Returns:
        A number a region, on the host: they sum to 1, to nine digits; 0 for the thumbnail itself.
    """
    layout, tokens = image.layout, image.layout.members()
    if layout.thumbnail is None:
        values, masses = np.array(attention.double().tolist()), []
        for number in range(len(layout.regions)):
            masses.append(values[np.array(layout.region_of.tolist()) == number].sum())
        found = np.array(masses)
    else:
        seen = np.array(attention[tokens[layout.thumbnail]].double().tolist())
        seen = seen.reshape(layout.regions[layout.thumbnail].grid)
        down, across = inside(seen.shape, image)
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
    layout, tokens, places = image.layout, image.layout.members(), image.layout.places()
    assert layout.thumbnail is not None
    rows, columns = layout.regions[layout.thumbnail].grid
    small, seen = attention[tokens[layout.thumbnail]].view(rows, columns), attention.clone()
    alike: dict[tuple[int, int], list[int]] = {}
    for number, region in enumerate(layout.regions):
        if number != layout.thumbnail:
            alike.setdefault(region.grid, []).append(number)
    for grid, numbers in alike.items():  # all tiles of one size at once
        boxes = [places[number].box for number in numbers]
        down = np.stack([_interpolation(rows, grid[0], top, bottom) for _, top, _, bottom in boxes])
        across = np.stack([_interpolation(columns, grid[1], left, right) for left, _, right, _ in boxes])
        sides = torch.from_numpy(down).to(small), torch.from_numpy(across.transpose(0, 2, 1)).to(small)
        seen[torch.cat([tokens[number] for number in numbers])] = (sides[0] @ small @ sides[1]).flatten()
    return seen


def _interpolation(cells: int, points: int, low: float, high: float) -> np.ndarray:
    """Weights that interpolate ``cells`` values over 0..1 linearly, at ``points`` cell centres between low and high.

    Values are constant beyond the outermost centres. Returns a float64 array [points, cells].
    """
    centres = low + (np.arange(points) + 0.5) / points * (high - low)
    at = (centres * cells - 0.5).clip(0, cells - 1)
    return (1 - np.abs(at[:, None] - np.arange(cells))).clip(min=0)
