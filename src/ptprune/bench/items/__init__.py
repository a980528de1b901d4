"""Items that a model is asked: one question about one picture with its right answer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ptprune.pictures import open_picture


@dataclass(frozen=True)
class Item:
    """One question about one picture."""

    picture: Image.Image | Path  # itself, or the file that holds it
    size: tuple[int, int]  # its (width, height)
    digest: str  # of the picture, hexadecimal
    question: str
    answer: str
    kind: str = ""  # of the question; empty where nobody said
    before: tuple[str, ...] = ()  # questions of earlier turns; the picture is shown in the first turn
    listing: bool = False  # whether the answer is a list, scored by F1

    def open(self) -> Image.Image:
        return open_picture(self.picture) if isinstance(self.picture, Path) else self.picture


def is_right(given: str, expected: str) -> bool:
    """Whether an answer is the expected one: the same text but for spaces around it."""
    return given.strip() == expected.strip()


def mark(given: str, expected: str, listing: bool = False) -> float:
    """How right an answer is, from 0 to 1: a word is or is not, and a list by its F1."""
    return listing_f1(given, expected) if listing else float(is_right(given, expected))


def listing_f1(given: str, expected: str) -> float:
    """F1 over what two lists with commas hold, such as "red 7, blue star"; what is there twice counts twice."""
    ours, theirs = (Counter(part.strip() for part in text.split(",") if part.strip()) for text in (given, expected))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


def digest(items: Sequence[Item]) -> str:
    """Hash that identifies a list of items, whatever folder they lie in."""
    told = [
        [item.digest, item.question, item.answer, item.kind]
        + ([item.before, item.listing] if item.before or item.listing else [])
        for item in items
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
