"""Items that a model is asked: one question about one picture with its right answer."""

from __future__ import annotations

import hashlib
import json
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

    def open(self) -> Image.Image:
        return open_picture(self.picture) if isinstance(self.picture, Path) else self.picture


def is_right(given: str, expected: str) -> bool:
    """Whether an answer is the expected one: the same text but for spaces around it."""
    return given.strip() == expected.strip()


def digest(items: Sequence[Item]) -> str:
    """Hash that identifies a list of items, whatever folder they lie in."""
    told = [[item.digest, item.question, item.answer, item.kind] for item in items]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
