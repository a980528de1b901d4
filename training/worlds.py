"""Items of the stage "worlds": scenes and pages of one size with several sets of questions, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ptprune.tiny.backgrounds import BACKGROUNDS
from ptprune.tiny.documents import Document, generate_document, page_grids
from ptprune.tiny.scenes import Scene, generate_scene, grids

from .data import cut_tiles, tile_contents
from .language import CAPTION, IGNORE, Packer, conversations
from .model import TOKENS
from .vision import bags, dense_labels, tile_arrays

EASY, ALL = (1, 2, 2, 3, 4, 6), (1, 2, 3, 4, 6, 6, 8, 8, 9, 9, 10, 10, 12, 12, 12, 12)
"""Numbers of tiles to draw from, in the first part of the run and afterwards."""
EASY_PART = 0.3
FILLS = (((0.3, 0.7), 0.40), ((0.9, 1.0), 0.25), ((0.1, 0.25), 0.15), ((0.1, 1.0), 0.20))
"""Shares of the tiles that hold something, each with its share of the scenes: usual, crowded, sparse, any."""
USUAL_BACKGROUND = 0.7
GAPS = (2, 8, 32)
"""Greatest jumps of the positions after a tile; half of the sequences have none."""


def draw(seed: int, tiles: int, pages: float, rng: np.random.Generator) -> Scene | Document:
    """A picture of the training split for ``seed``, of so many tiles; a page with the probability ``pages``."""
    if rng.random() < pages:
        shapes = page_grids(tiles, tiles) or grids(tiles, tiles)
        grid = shapes[int(rng.integers(len(shapes)))]
        return generate_document("train", seed, grid=grid, fill=(0.5, 1.0) if rng.random() < 0.2 else (0.75, 1.0))
    shapes = grids(tiles, tiles)
    fill = FILLS[int(rng.choice(len(FILLS), p=[share for _, share in FILLS]))][0]
    usual = rng.random() < USUAL_BACKGROUND
    background = BACKGROUNDS[0 if usual else int(rng.integers(1, len(BACKGROUNDS)))]
    grid = shapes[int(rng.integers(len(shapes)))]
    return generate_scene("train", seed, grid=grid, fill=fill, background=background)


class Wanted(Protocol):
    """What an item should have: ``tiles`` at most, ``uses`` sets of ``questions`` a picture, a share of ``pages``."""

    tiles: int
    uses: int
    questions: int
    pages: float


def maker(packer: Packer, wanted: Wanted) -> Callable[[int, float], dict[str, np.ndarray]]:
    """The function that makes an item of a number, and of how much of the run is done."""

    def make(number: int, progress: float) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([number, 41])
        choices = EASY if progress < EASY_PART else ALL
        tiles = choices[int(rng.integers(len(choices)))]
        count = max(1, min(wanted.tiles // (tiles + (tiles > 1)), wanted.tiles // 6))
        pictures = [draw(10_000_000 + number * 256 + i, tiles, wanted.pages, rng) for i in range(count)]
        item = picture_arrays(pictures)
        for use in range(wanted.uses):
            for name, array in pack_arrays(packer, pictures, use, wanted.questions, rng).items():
                item[f"{use}/{name}"] = array
        return item

    return make


def picture_arrays(pictures: list[Scene] | list[Document] | list[Scene | Document]) -> dict[str, np.ndarray]:
    """Pixels and labels of all tiles of pictures that have the same number of tiles."""
    images = pictures[0].tiles + (pictures[0].tiles > 1)
    pairs = [bags(tile_contents(picture)) for picture in pictures]
    place = np.tile(np.arange(images), len(pictures))
    thumbnail = (place == images - 1) if images > 1 else np.zeros(len(place), bool)
    return {
        "pixels": np.concatenate([cut_tiles(picture) for picture in pictures]),
        "labels": np.concatenate([dense_labels(picture) for picture in pictures]).astype(np.int16),
        **tile_arrays(np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]), thumbnail),
        "scene": np.repeat(np.arange(len(pictures)), images),
    }


def pack_arrays(
    packer: Packer, pictures: list, use: int, questions: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One set of questions about each picture: sequences, and their targets as a flat list with places."""
    images = pictures[0].tiles + (pictures[0].tiles > 1)
    talks = [
        conversations(p, p.seed * 31 + 2 * use, questions, use % 2 == 0, use % 2 == 1, extra=questions // 2)
        for p in pictures
    ]
    gaps = [rng.integers(0, GAPS[int(rng.integers(len(GAPS)))] + 1, images) * int(rng.random() < 0.5) for _ in pictures]
    pack = packer.pack(pictures, talks, gaps=gaps, multiple=16)
    where = np.flatnonzero(pack.target != IGNORE)
    kind = pack.kind.reshape(-1)[where]
    return {
        "ids": pack.ids.astype(np.int32),
        "position": pack.position.astype(np.int32),
        "block": pack.block.astype(np.int8),
        "where": where,
        "target": pack.target.reshape(-1)[where],
        "kind": np.where(kind < 0, CAPTION + 1, kind),
    }


def visual_tokens(tiles: int) -> int:
    """Visual tokens of a picture of so many tiles, its thumbnail included."""
    return TOKENS * (tiles + (tiles > 1))
