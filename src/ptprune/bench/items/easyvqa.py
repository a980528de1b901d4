"""easy-VQA (Victor Zhou, MIT) as high-resolution scenes: its 64 x 64 pictures, which no model here was trained on.

A scene holds what the picture of a question shows, and what some other pictures show whose shape and colour the
question does not name: the answer stays what it was, and most of the scene has nothing to do with it. Shapes are cut
from their plain light backgrounds and laid on a dark one, and the two questions that remain clear among several shapes
are put in words that the shipped checkpoint knows. Scenes follow from their number alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from ptprune.bench.items import Item
from ptprune.errors import UserError
from ptprune.tiny.scenes import grids
from ptprune.tiny.world import COLOURS, SHAPES, TILE

WORDS = {"colour": "what colour is the {}?", "shape": "which shape is {}?"}
"""Kind of question -> our wording of "what color is the circle?" and "what is the red shape?"."""
TILES = 6, 12  # fewest and most of a scene, as many as the shipped checkpoint's scenes have
OTHERS = 2, 5  # fewest and most shapes besides the one that is asked about
CANVAS = (40, 40, 40)
CONTRAST = 24  # least difference from its background, in one channel, that makes a pixel part of a shape
SEED = 64


class Asked(NamedTuple):
    """A question of easy-VQA: ``named`` is the one shape or colour that it speaks of, ``picture`` a path."""

    named: str
    answer: str
    picture: str


class Material(NamedTuple):
    """Questions by kind, each in a fixed random order, and the (shape, colour) of each picture."""

    questions: dict[str, list[Asked]]
    content: dict[str, tuple[str, str]]


def easy_vqa_items(count: int, on_item: Callable[[int], None] = lambda done: None) -> list[Item]:
    """The first items: a colour and a shape in turn. Raises UserError where easy-VQA is missing or has fewer."""
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
        items.append(Item(scene, scene.size, digest, WORDS[kind].format(asked.named), asked.answer, kind))
        on_item(len(items))
    return items


@cache
def load() -> Material:
    """The content of the package easy-vqa, without questions whose words the shipped checkpoint does not know."""
    try:
        import easy_vqa
    except ImportError:
        raise UserError("easy-VQA is not installed; install the extra: pip install 'ptprune[eval]'") from None
    answers, shapes = set(easy_vqa.get_answers()) - {"yes", "no"}, {"circle", "rectangle", "triangle"}
    shape: dict[str, str] = {}
    colour: dict[str, str] = {}
    clear: dict[str, list[Asked]] = {"colour": [], "shape": []}
    for questions, paths in (
        (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
        (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
    ):
        for text, answer, number in zip(*questions, strict=True):
            if answer not in answers:  # yes or no
                continue
            picture = paths[number]
            (shape if answer in shapes else colour)[picture] = answer
            for named in answers.intersection(text.strip("?").split()):  # none in "what shape is in the image?"
                (shape if named in shapes else colour)[picture] = named
                if {answer, named} <= {*SHAPES, *COLOURS}:
                    clear["shape" if answer in shapes else "colour"].append(Asked(named, answer, picture))
    order, shuffled = np.random.default_rng(SEED), {}
    for kind, found in clear.items():
        asked = list(dict.fromkeys(found))
        shuffled[kind] = [asked[number] for number in order.permutation(len(asked))]
    return Material(shuffled, {picture: (shape[picture], colour[picture]) for picture in shape if picture in colour})


def compose(asked: Asked, number: int, material: Material) -> Image.Image:
    """The scene of a question: the shapes of its picture and of some others, each in a tile of its own."""
    rng = np.random.default_rng([SEED, number])
    choices = grids(*TILES)
    columns, rows = choices[int(rng.integers(len(choices)))]
    others = [picture for picture, content in material.content.items() if asked.named not in content]
    drawn = rng.choice(len(others), int(rng.integers(OTHERS[0], OTHERS[1] + 1)), replace=False)
    scene = np.full((rows * TILE, columns * TILE, 3), CANVAS, np.uint8)
    pictures = [asked.picture, *(others[index] for index in drawn)]
    for picture, tile in zip(pictures, rng.permutation(columns * rows), strict=False):
        top, left = tile // columns * TILE, tile % columns * TILE
        view = scene[top : top + TILE, left : left + TILE]
        with Image.open(picture) as file:
            pixels = np.asarray(file.convert("RGB"))
        shape = np.abs(pixels.astype(int) - pixels[0, 0]).max(-1) > CONTRAST
        view[shape] = pixels[shape]
    return Image.fromarray(scene)
