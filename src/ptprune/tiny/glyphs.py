"""Masks of the things that scenes show: handwritten digits, letters in several fonts, simple shapes.

Every function returns a float array [side, side] in 0..1, the thing's coverage of each pixel.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .world import DIGIT_RANGE, FONTS, MissingExtra

OVERSAMPLING = 3


@lru_cache(maxsize=1)
def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "the handwritten digits") from error
    digits = load_digits()
    return (digits.images / 16.0 * 255).astype(np.uint8), digits.target


@cache
def digit_samples(split: str, digit: str) -> tuple[int, ...]:
    """Indices into scikit-learn's digits that show ``digit`` and belong to ``split``."""
    start, stop = DIGIT_RANGE[split]
    _, target = _handwriting()
    return tuple(int(i) for i in np.flatnonzero(target[start:stop] == int(digit)) + start)


@cache
def _large_digit(sample: int) -> Image.Image:
    """The 8x8 sample, bicubically enlarged to 64x64 with an empty margin of 8."""
    small = Image.fromarray(_handwriting()[0][sample])
    canvas = Image.new("L", (80, 80))
    canvas.paste(small.resize((64, 64), Image.Resampling.BICUBIC), (8, 8))
    return canvas


def draw_digit(sample: int, side: int, rng: np.random.Generator, wild: bool) -> np.ndarray:
    """A handwritten digit; ``wild`` turns, shears, squeezes and thickens it more (training augments so)."""
    reach = 1.0 if wild else 0.4
    angle = math.radians(rng.uniform(-12, 12) * reach)
    shear = rng.uniform(-0.18, 0.18) * reach
    stretch = np.exp(rng.uniform(-0.15, 0.15, size=2) * reach)
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, shear], [0, 1]]) @ np.diag(stretch)
    matrix *= 70.0 / side  # the side shows 70 of the 80 pixels
    offset = 40.0 - matrix @ np.array([side / 2, side / 2])
    image = _large_digit(sample).transform(
        (side, side), Image.Transform.AFFINE, (*matrix[0], offset[0], *matrix[1], offset[1]), Image.Resampling.BICUBIC
    )
    threshold = rng.uniform(0.30, 0.56) if wild else rng.uniform(0.38, 0.48)
    mask = np.asarray(image, dtype=np.float32) / 255
    return np.clip((mask - threshold) * 2.5 + 0.5, 0, 1)


@cache
def font(name: str, size: int, layout: ImageFont.Layout | None = None) -> ImageFont.FreeTypeFont:
    """A font of matplotlib by the name of its file, ``size`` in pixels."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "the fonts of the letters") from error
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=layout)


@cache
def _reach(name: str, letter: str) -> float:
    """The larger of a letter's width and height, in units of the font's size."""
    left, top, right, bottom = font(name, 100).getbbox(letter)
    return max(right - left, bottom - top) / 100


def draw_letter(letter: str, split: str, side: int, rng: np.random.Generator, wild: bool) -> np.ndarray:
    """A capital letter as large as the square allows, in one of the split's fonts; ``wild`` slants and squeezes it."""
    names = FONTS[split]
    name = names[int(rng.integers(len(names)))]
    face = font(name, int(side * rng.uniform(0.80, 0.95) / _reach(name, letter)))
    left, top, right, bottom = face.getbbox(letter)
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text(
        ((side - left - right) / 2, (side - top - bottom) / 2),
        letter,
        fill=255,
        font=face,
        stroke_width=int(rng.integers(0, 2)),
    )
    angle = math.radians(rng.uniform(-8, 8))
    shear, squeeze = (rng.uniform(-0.2, 0.2), np.exp(rng.uniform(0, 0.2))) if wild else (0.0, 1.0)
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[squeeze, shear], [0, 1]])
    offset = side / 2 - matrix @ np.array([side / 2, side / 2])
    image = image.transform(
        (side, side), Image.Transform.AFFINE, (*matrix[0], offset[0], *matrix[1], offset[1]), Image.Resampling.BICUBIC
    )
    return np.asarray(image, dtype=np.float32) / 255


def _star(turn: float) -> list[tuple[float, float]]:
    radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
    return [
        (radius * math.sin(turn + math.pi * i / 5), -radius * math.cos(turn + math.pi * i / 5))
        for i, radius in enumerate(radii)
    ]


def _heart() -> list[tuple[float, float]]:
    curve = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
        )
        for t in curve
    ]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "star": _star(0.0),
    "heart": _heart(),
    "cross": [
        (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
        (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
    ],
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
}  # fmt: skip


def draw_shape(shape: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """A filled shape, a little turned, drawn three times too large and shrunk to smooth its edge."""
    big = side * OVERSAMPLING
    image = Image.new("L", (big, big))
    pen = ImageDraw.Draw(image)
    centre, radius = big / 2, big / 2 - OVERSAMPLING
    if shape in ("circle", "moon"):
        pen.ellipse((centre - radius, centre - radius, centre + radius, centre + radius), fill=255)
        if shape == "moon":
            bite, shift = radius * 0.88, radius * 0.62
            pen.ellipse((centre + shift - bite, centre - bite, centre + shift + bite, centre + bite), fill=0)
    else:
        angle = math.radians(rng.uniform(-10, 10))
        cosine, sine = math.cos(angle), math.sin(angle)
        pen.polygon(
            [
                (centre + radius * (x * cosine - y * sine), centre + radius * (x * sine + y * cosine))
                for x, y in _POLYGONS[shape]
            ],
            fill=255,
        )
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
