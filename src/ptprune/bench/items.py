"""What a model is asked: the scenes of the shipped checkpoint, or a folder of pictures with questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ptprune.cli.pictures import open_picture
from ptprune.errors import UserError

LIST = "items.jsonl"
EXAMPLE = '{"picture": "sign.png", "question": "What is written there?", "answer": "exit"}'


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    Attributes:
        picture: the picture, or the file that holds it.
        size: its (width, height).
        digest: of the picture, hexadecimal.
        kind: of the question; empty where nobody said.
    """

    picture: Image.Image | Path
    size: tuple[int, int]
    digest: str
    question: str
    answer: str
    kind: str = ""

    def open(self) -> Image.Image:
        return open_picture(self.picture) if isinstance(self.picture, Path) else self.picture


def is_right(given: str, expected: str) -> bool:
    """Whether an answer is the expected one: its text exactly, spaces around it left out."""
    return given.strip() == expected.strip()


def scene_items(split: str, count: int, on_item: Callable[[int], None] = lambda done: None) -> list[Item]:
    """One question about each of the first ``count`` scenes of a split; both follow from the scene's number alone.

    Raises:
        UserError: where the libraries that draw scenes are not installed.
    """
    try:
        from ptprune.tiny.questions import ask
        from ptprune.tiny.scenes import generate_scene
        from ptprune.tiny.world import MissingExtra
    except ImportError as error:
        raise UserError(f"{error}; install the extra: pip install 'ptprune[scenes]'") from None
    items = []
    for seed in range(count):
        try:
            scene = generate_scene(split, seed)
        except MissingExtra as error:
            raise UserError(str(error)) from None
        digest = hashlib.sha256(scene.image.tobytes()).hexdigest()
        items += [Item(scene.image, scene.image.size, digest, q.text, q.answer, q.kind) for q in ask(scene, 1)]
        on_item(len(items))
    return items


def folder_items(
    folder: Path, limit: int | None = None, on_item: Callable[[int], None] = lambda done: None
) -> list[Item]:
    """The items that a folder's ``items.jsonl`` lists, one JSON object a line. Every picture is opened once.

    Raises:
        UserError: for a list or a picture that cannot be used, with the number of the line.
    """
    if not folder.is_dir():
        raise UserError(f"--items {folder}: no such folder; give one that holds {LIST}")
    listed = folder / LIST
    try:
        lines = listed.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"--items {folder}: no {LIST} there; it holds a line such as {EXAMPLE} an item") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listed}: cannot be read ({error})") from None
    items: list[Item] = []
    pictures: dict[Path, tuple[tuple[int, int], str]] = {}
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(items) >= limit:
            break
        if not line.strip():
            continue
        where = f"{listed} line {number}"
        entry = _entry(line, where)
        path = folder / entry["picture"]
        try:
            if path not in pictures:
                pictures[path] = open_picture(path).size, hashlib.sha256(path.read_bytes()).hexdigest()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        items.append(Item(path, *pictures[path], entry["question"], entry["answer"].strip(), entry.get("kind", "")))
        on_item(len(items))
    if not items:
        raise UserError(f"{listed}: no items; it holds a line such as {EXAMPLE} an item")
    return items


def _entry(line: str, where: str) -> dict[str, str]:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); give {EXAMPLE}") from None
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not a JSON object; give {EXAMPLE}")
    for name in ("picture", "question", "answer"):
        if name not in entry:
            raise UserError(f'{where}: no "{name}"; give {EXAMPLE}')
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise UserError(f'{where}: "{name}" must be a text that is not empty')
    if not isinstance(entry.get("kind", ""), str):
        raise UserError(f'{where}: "kind" must be a text')
    return entry


def digest(items: Sequence[Item]) -> str:
    """Tells two lists of items apart, in whatever folder they lie."""
    told = [[item.digest, item.question, item.answer, item.kind] for item in items]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
