"""easy-VQA's test questions (Victor Zhou, MIT), each about a high-resolution scene composed of its 64 x 64 pictures.

A scene holds the picture that the question was written for, and others whose shape and colour it does not name: the
answer stays what it was, and most of the scene has nothing to do with it. Scenes follow from their number alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ptprune.bench.items import Item
from ptprune.cli.errors import UserError
from ptprune.tiny.scenes import grids
from ptprune.tiny.world import TILE

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("red", "green", "blue", "black", "brown", "teal", "gray", "yellow")
TILES = 6, 12  # fewest and most of a scene, as many as the shipped checkpoint's scenes have
OTHERS = 2, 5  # fewest and most pictures besides the one that is asked about
SEED = 64


class Asked(NamedTuple):
    """A question of easy-VQA. ``named`` is the one shape or colour that it speaks of."""

    text: str
    answer: str
    picture: int
    named: str


class Material(NamedTuple):
    """Questions by kind, each in a fixed random order; where pictures lie; what is in them: (shape, colour)."""

    questions: dict[str, list[Asked]]
    paths: dict[int, str]
    content: dict[int, tuple[str, str]]


def easy_vqa_items(count: int, on_item: Callable[[int], None] = lambda done: None) -> list[Item]:
    """The first ``count`` items: colours, shapes, "yes" and "no" in turn.

    Raises:
        UserError: where easy-VQA is not installed, or has fewer questions.
    """
    material = load()
    kinds = list(material.questions)
    most = len(kinds) * min(map(len, material.questions.values()))
    if count > most:
        raise UserError(f"--count {count}: easy-VQA has questions for {most} scenes; give at most that")
    items = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        asked = material.questions[kind][number // len(kinds)]
        scene = compose(asked, number, material)
        digest = hashlib.sha256(scene.tobytes()).hexdigest()
        items.append(Item(scene, scene.size, digest, asked.text, asked.answer, kind))
        on_item(len(items))
    return items


@cache
def load() -> Material:
    """What the package easy-vqa holds, questions that several pictures would make ambiguous left out."""
    try:
        import easy_vqa
    except ImportError:
        raise UserError("easy-VQA is not installed; install the extra: pip install 'ptprune[eval]'") from None
    shapes: dict[int, str] = {}
    colours: dict[int, str] = {}
    questions: dict[str, list[Asked]] = {"colour": [], "shape": [], "yes": [], "no": []}
    for text, answer, picture in zip(*easy_vqa.get_test_questions(), strict=True):
        words = text.strip("?").split()
        if answer in SHAPES:
            shapes[picture] = answer
        elif answer in COLOURS:
            colours[picture] = answer
        named = [word for word in words if word in SHAPES + COLOURS]
        if len(named) == 1:  # none: "what shape is in the image?"
            kind = "shape" if answer in SHAPES else "colour" if answer in COLOURS else answer
            questions[kind].append(Asked(text, answer, picture, named[0]))
            if kind == "shape":  # "what is the red shape?"
                colours[picture] = named[0]
            elif kind == "colour":  # "what color is the circle?"
                shapes[picture] = named[0]
    order = np.random.default_rng(SEED)
    for asked in questions.values():
        asked[:] = [asked[number] for number in order.permutation(len(asked))]
    content = {picture: (shapes[picture], colours[picture]) for picture in sorted(shapes.keys() & colours.keys())}
    return Material(questions, easy_vqa.get_test_image_paths(), content)


def compose(asked: Asked, number: int, material: Material) -> Image.Image:
    """The scene of a question: its picture and some others, each in a tile of its own."""
    rng = np.random.default_rng([SEED, number])
    choices = grids(*TILES)
    columns, rows = choices[int(rng.integers(len(choices)))]
    others = [picture for picture, content in material.content.items() if asked.named not in content]
    shown = [asked.picture, *rng.choice(others, int(rng.integers(OTHERS[0], OTHERS[1] + 1)), replace=False)]
    pictures = [_open(material.paths[int(picture)]) for picture in shown]
    scene = Image.new("RGB", (columns * TILE, rows * TILE), pictures[0].getpixel((0, 0)))  # on its own background
    for picture, tile in zip(pictures, rng.permutation(columns * rows), strict=False):
        scene.paste(picture, (int(tile) % columns * TILE, int(tile) // columns * TILE))
    return scene


def _open(path: str | Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
