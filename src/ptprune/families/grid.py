"""Infers an image's tile grid from its pixels, for families where neither processor nor prompt gives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from ptprune.families.encoded import EncodedImage, EncodedTile, join_tiles
from ptprune.layout import THUMBNAIL, Place, even_place


def join_by_pixels(tiles: Sequence[EncodedTile]) -> EncodedImage:
    """The image of row-major tiles and, last, their thumbnail; its grid is read from their previews."""
    return join_tiles(tiles, "last", cache(partial(_places, tiles)))


def _places(encoded: Sequence[EncodedTile]) -> list[Place]:
    *tiles, thumbnail = (tile.tiles.previews_on_host[tile.index] for tile in encoded)
    columns = infer_columns(np.stack(tiles), thumbnail)
    rows = len(tiles) // columns
    return [*(even_place(*divmod(tile, columns), rows, columns) for tile in range(len(tiles))), THUMBNAIL]


def infer_columns(tiles: np.ndarray, thumbnail: np.ndarray) -> int:
    """The number of columns for which the joined tiles look most like the thumbnail.

    Reports, drawings and scores by area (attention-mass, image-saliency, HiRED, GlobalCom2) use it; PTP's defaults do
    not. If several grids look alike, the widest of them is returned.

    Args:
        tiles: float array [tiles, channels, p, p], tiny copies of the tiles, row-major.
        thumbnail: float array [channels, p, p], a tiny copy of the thumbnail.
    """
    count, channels, side, _ = tiles.shape
    tiles, thumbnail = tiles.astype(np.float64), thumbnail.astype(np.float64)
    best, best_error = count, math.inf
    for columns in (c for c in range(count, 0, -1) if count % c == 0):
        rows = count // columns
        whole = tiles.reshape(rows, columns, channels, side, side).transpose(2, 0, 3, 1, 4)
        small = whole.reshape(channels, side, rows, side, columns).mean(axis=(2, 4))
        error = np.square(small - thumbnail).mean()
        if error < best_error - 1e-9:
            best, best_error = columns, error
    return best
