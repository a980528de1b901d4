"""Backgrounds of scenes: plain, textured, photographic. Muted and dark: what lies on them is readable."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from .world import PHOTOGRAPHS, TEXTURES, MissingExtra

BACKGROUNDS = ("mixture", "plain", "photograph", "noise")
"""What can lie behind the objects of a scene; the mixture is of plain ones, waves, textures and photographs."""


@cache
def _picture(name: str) -> Image.Image:
    """One of the pictures in scikit-image's wheel. Read as a file: its own loader would pull in the whole library."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtra("scikit-image", "the photographs")
    image = Image.open(Path(spec.origin).parent / "data" / name).convert("RGB")
    if max(image.size) > 640:
        image.thumbnail((640, 640), Image.Resampling.BICUBIC)
    return image


def cut_picture(name: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of a photograph or texture: float array [height, width, 3] in 0..1."""
    picture = _picture(name)
    largest = min(picture.width / width, picture.height / height)
    scale = largest * rng.uniform(0.6, 1.0)
    left = rng.uniform(0, picture.width - width * scale)
    top = rng.uniform(0, picture.height - height * scale)
    cut = picture.resize(
        (width, height), Image.Resampling.BILINEAR, box=(left, top, left + width * scale, top + height * scale)
    )
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(cut, dtype=np.float32) / 255


def _waves(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Stripes, checks or soft noise, from a few sines."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    total = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        angle, length, phase = rng.uniform(0, np.pi), rng.uniform(7, 50), rng.uniform(0, 2 * np.pi)
        total += np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / length) + phase)
    total = (total - total.min()) / (np.ptp(total) + 1e-6)
    return np.repeat(total[..., None], 3, axis=2)


def draw_background(
    split: str, width: int, height: int, rng: np.random.Generator, which: str = "mixture"
) -> tuple[np.ndarray, str]:
    """A background of ``height`` x ``width`` as float array [height, width, 3] in 0..1, and its name.

    which : one of ``BACKGROUNDS``.
    """
    choice = rng.random() if which == "mixture" else {"plain": 0.0, "noise": 0.0, "photograph": 1.0}[which]
    tint = rng.uniform(0.7, 1.0, size=3).astype(np.float32)
    low, high = rng.uniform(0.04, 0.16), rng.uniform(0.32, 0.50)
    if which == "noise":
        level, name = rng.random((height, width, 3), dtype=np.float32), "noise"
    elif choice < 0.25:
        level = np.full((height, width, 3), rng.uniform(0, 1), np.float32)
        name = "plain"
    elif choice < 0.40:
        level, name = _waves(width, height, rng), "waves"
    else:
        names = TEXTURES[split] if choice < 0.60 else PHOTOGRAPHS[split]
        name = names[int(rng.integers(len(names)))]
        level = cut_picture(name, width, height, rng)
        grey = level.mean(axis=2, keepdims=True)
        level = grey + (level - grey) * 0.5
    return (low + (high - low) * level) * tint, name
