"""The functions behind the tasks of ``ptprune items``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ptprune.bench.items import is_right
from ptprune.pictures import open_picture


def visual_in(folder: Path) -> Callable[[Mapping[str, str]], list[Image.Image]]:
    """What gives an item's picture, from the folder that holds it."""

    def doc_to_visual(item: Mapping[str, str]) -> list[Image.Image]:
        return [open_picture(folder / item["picture"])]

    return doc_to_visual


def score(item: Mapping[str, str], answers: Sequence[str]) -> dict[str, float]:
    """1 for a right answer, by the rule of ``ptprune bench accuracy``."""
    return {"accuracy": float(is_right(answers[0], item["answer"]))}
