"""Seeded high-resolution scenes: a few handwritten digits, letters and shapes scattered over many tiles.

``generate_scene("dev", 7)`` is the same scene on every call. Splits share no seed, no handwriting, no font and no
photograph. Drawing needs the extra ``ptprune[scenes]`` (scikit-learn, scikit-image, matplotlib).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .backgrounds import draw_background
from .glyphs import digit_samples, draw_digit, draw_letter, draw_shape
from .world import COLOURS, NAMES, SPLITS, TILE, check_split


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene. ``box`` is (left, top, right, bottom) in pixels of the scene."""

    kind: str
    name: str
    colour: str
    column: int
    row: int
    box: tuple[int, int, int, int]
    beside: int | None = None
    """Index of the object that shares the tile: a letter and a shape stand next to each other."""
    sample: int | None = None
    """For digits: which handwriting, an index into scikit-learn's digits."""

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    split: str
    seed: int
    columns: int
    rows: int
    image: Image.Image
    objects: tuple[SceneObject, ...]
    background: str
    owner: np.ndarray = field(repr=False, compare=False)
    """int8 [height, width]: index of the object that covers a pixel, -1 for background."""

    @property
    def tiles(self) -> int:
        return self.columns * self.rows


def grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """All (columns, rows) of ``fewest`` to ``most`` tiles that are at most four times as long as wide."""
    return [
        (c, r)
        for c in range(1, most + 1)
        for r in range(1, most + 1)
        if fewest <= c * r <= most and max(c, r) <= 4 * min(c, r)
    ]


def generate_scene(
    split: str,
    seed: int,
    *,
    tiles: tuple[int, int] = (6, 12),
    grid: tuple[int, int] | None = None,
    fill: tuple[float, float] = (0.3, 0.7),
    wild: bool | None = None,
    background: str = "mixture",
) -> Scene:
    """The scene that ``split`` and ``seed`` stand for.

    tiles : fewest and most tiles; ``grid`` = (columns, rows) fixes them.
    fill : least and greatest share of the tiles that hold something.
    wild : distort handwriting strongly. Default: in the training split only.
    background : one of ``backgrounds.BACKGROUNDS``.
    """
    check_split(split)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    wild = split == "train" if wild is None else wild
    if grid is None:
        choices = grids(*tiles)
        grid = choices[int(rng.integers(len(choices)))]
    columns, rows = grid
    canvas, behind = draw_background(split, columns * TILE, rows * TILE, rng, background)
    owner = np.full(canvas.shape[:2], -1, np.int8)

    number = columns * rows
    used = max(1, min(number, int(round(number * rng.uniform(*fill)))))
    objects: list[SceneObject] = []
    for tile in sorted(int(t) for t in rng.permutation(number)[:used]):
        column, row = tile % columns, tile // columns
        for kind, name, box, mask, beside, sample in _fill_tile(split, rng, wild, len(objects)):
            colour = _choose(rng, tuple(COLOURS))
            left, top = column * TILE + box[0], row * TILE + box[1]
            side = mask.shape[0]
            view = canvas[top : top + side, left : left + side]
            view += mask[..., None] * (_shade(colour, rng) - view)
            owner[top : top + side, left : left + side][mask > 0.5] = len(objects)
            extent = _extent(mask)
            place = (left + extent[0], top + extent[1], left + extent[2], top + extent[3])
            objects.append(SceneObject(kind, name, colour, column, row, place, beside, sample))
    noise = rng.normal(0, rng.uniform(0, 0.02), size=canvas.shape[:2] + (1,)).astype(np.float32)
    pixels = (np.clip(canvas + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(split, seed, columns, rows, Image.fromarray(pixels), tuple(objects), behind, owner)


def _fill_tile(split: str, rng: np.random.Generator, wild: bool, first: int) -> list[tuple]:
    """What one tile holds: (kind, name, position in the tile, mask, index of the neighbour, handwriting)."""
    what = rng.random()
    if what < 0.32:  # a letter next to a shape
        sides = int(rng.integers(22, 28)), int(rng.integers(22, 29))
        masks = (
            (letter := _choose(rng, NAMES["letter"]), draw_letter(letter, split, sides[0], rng, wild)),
            (shape := _choose(rng, NAMES["shape"]), draw_shape(shape, sides[1], rng)),
        )
        order = [0, 1] if rng.random() < 0.5 else [1, 0]
        room = TILE - 4 - sum(sides)
        start = 2 + int(rng.integers(0, room // 2 + 1))
        gap = int(rng.integers(1, max(2, room - (start - 2))))
        along = {order[0]: start, order[1]: start + sides[order[0]] + gap}
        level = int(rng.integers(2, TILE - 2 - max(sides)))
        across = [int(np.clip(level + rng.integers(-3, 4), 2, TILE - 2 - s)) for s in sides]
        upright = rng.random() < 0.5
        boxes = [(across[i], along[i]) if upright else (along[i], across[i]) for i in (0, 1)]
        return [
            ("letter", masks[0][0], boxes[0], masks[0][1], first + 1, None),
            ("shape", masks[1][0], boxes[1], masks[1][1], first, None),
        ]
    sample = None
    if what < 0.68:
        kind, side = "digit", int(rng.integers(32, 45))
        name = _choose(rng, NAMES["digit"])
        samples = digit_samples(split, name)
        sample = samples[int(rng.integers(len(samples)))]
        mask = draw_digit(sample, side, rng, wild)
    elif what < 0.82:
        kind, side = "letter", int(rng.integers(24, 37))
        name = _choose(rng, NAMES["letter"])
        mask = draw_letter(name, split, side, rng, wild)
    else:
        kind, side = "shape", int(rng.integers(22, 37))
        name = _choose(rng, NAMES["shape"])
        mask = draw_shape(name, side, rng)
    box = int(rng.integers(1, TILE - side)), int(rng.integers(1, TILE - side))
    return [(kind, name, box, mask, None, sample)]


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _shade(colour: str, rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = COLOURS[colour]
    hue = (hue + rng.uniform(-5, 5)) % 360 / 360
    saturation = saturation * rng.uniform(0.88, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value * rng.uniform(0.9, 1.0)), np.float32)


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask > 0.5)
    if not len(xs):
        return 0, 0, mask.shape[1], mask.shape[0]
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
