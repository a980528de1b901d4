"""The worlds by name: what a picture of each shows, and what is asked about it. All follows from split and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from .backgrounds import BACKGROUNDS
from .document_questions import ask_document
from .documents import Document, generate_document
from .questions import Question, ask, caption
from .scenes import Scene, generate_scene

LISTING = "list everything."
WORD, LIST = 2, 72
"""Longest answers in tokens of the shipped checkpoint: a word, and a list of all objects."""


@dataclass(frozen=True)
class Example:
    """One question about one picture with its right answer."""

    image: Image.Image
    question: str
    answer: str
    kind: str
    before: tuple[str, ...] = ()
    """Questions of earlier turns; the picture is shown in the first turn."""


@dataclass(frozen=True)
class World:
    """A kind of pictures with a kind of questions."""

    name: str
    about: str
    draw: Callable[..., Scene | Document]
    """(split, seed), and ``background`` if the world leaves it open -> the picture."""
    question: Callable[[Any], tuple[Question, tuple[str, ...]]]
    """Picture -> the question about it, and the questions of the turns before."""
    backgrounds: bool = True
    """Whether the background can be chosen, one of ``BACKGROUNDS``."""
    longest: int = WORD
    listing: bool = False
    """Whether answers are lists, scored by F1 over what they list."""

    def example(self, split: str, seed: int, background: str | None = None) -> Example:
        """The question that ``split`` and ``seed`` stand for.

        background : one of ``BACKGROUNDS``; None for the world's own.

        Raises ValueError for a background that there is not here.
        """
        if background is not None and (not self.backgrounds or background not in BACKGROUNDS):
            choices = f"one of {', '.join(BACKGROUNDS)}" if self.backgrounds else "left out: pages are printed on paper"
            raise ValueError(f"background {background} in world {self.name}: must be {choices}")
        picture = self.draw(split, seed, **({} if background is None else {"background": background}))
        asked, before = self.question(picture)
        return Example(picture.image, asked.text, asked.answer, asked.kind, before)


def _one(picture: Scene | Document) -> tuple[Question, tuple[str, ...]]:
    return _asked(picture, 1)[0], ()


def _second(picture: Scene | Document) -> tuple[Question, tuple[str, ...]]:
    *before, last = _asked(picture, 2)
    return last, tuple(question.text for question in before)


def _asked(picture: Scene | Document, count: int) -> list[Question]:
    return ask_document(picture, count) if isinstance(picture, Document) else ask(picture, count)


def _everything(scene: Scene) -> tuple[Question, tuple[str, ...]]:
    return Question("caption", LISTING, caption(scene)), ()


def _scene_or_page(split: str, seed: int) -> Scene | Document:
    return generate_document(split, seed) if seed % 2 else generate_scene(split, seed)


WORLDS = {
    world.name: world
    for world in (
        World("usual", "objects in 30-70% of 6 to 12 tiles", generate_scene, _one),
        World("sparse", "objects in 10-25% of the tiles", partial(generate_scene, fill=(0.1, 0.25)), _one),
        World(
            "crowded",
            "objects in nearly all of 9 to 12 tiles",
            partial(generate_scene, fill=(0.9, 1.0), tiles=(9, 12)),
            _one,
        ),
        World("documents", "pages of small print: words and numbers in rows", generate_document, _one, False),
        World("captions", '"list everything", scored by F1', generate_scene, _everything, longest=LIST, listing=True),
        World("dialogue", "the second question, after a first one", _scene_or_page, _second, False),
    )
}
"""Name -> world."""
