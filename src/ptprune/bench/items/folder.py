"""Questions as a folder of pictures with a list: read by ``ptprune bench accuracy --items``, and written by
``ptprune items`` together with a task that any model of lmms-eval can answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptprune.bench.items import Item, mark
from ptprune.bench.items.easyvqa import easy_vqa_items
from ptprune.bench.items.scenes import scene_items
from ptprune.bounds import MAX_ITEMS
from ptprune.errors import UserError
from ptprune.files import inside, replacing, write_whole, writing
from ptprune.pictures import open_picture
from ptprune.tiny.worlds import WORLDS

LIST = "items.jsonl"
LARGEST = 1 << 28  # bytes of a list
EXAMPLE = '{"picture": "sign.png", "question": "What is written there?", "answer": "exit"}'

DIALOGUE, USUAL = "dialogue", "usual"
SETS: dict[str, Callable[..., list[Item]]] = {
    "scenes": partial(scene_items, "test"),
    "easy-vqa": easy_vqa_items,
    **{name: partial(scene_items, "test", world=name) for name in WORLDS if name not in (USUAL, DIALOGUE)},
}
"""Name of a set that can be written -> function that makes so many items. No line of a list holds a dialogue."""
SENTENCE = 32  # longest answer, in tokens, where the world does not say more

TASK = """\
# Written by `ptprune items {name}`: the questions of items.jsonl as a task of lmms-eval.
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: items.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.doc_to_visual
doc_to_text: question
doc_to_target: answer
process_results: !function ptprune.bench.items.folder.score
generation_kwargs:
  max_new_tokens: {longest}
  do_sample: false
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""
PICTURES = '''\
"""Written by `ptprune items`: where the pictures of this folder's task are."""

from pathlib import Path

from ptprune.bench.items.folder import visual_in

doc_to_visual = visual_in(Path(__file__).parent)
'''


def task_name(name: str) -> str:
    """The name of a set's task in lmms-eval."""
    return f"ptprune_{name.replace('-', '_')}"


def write(name: str, folder: Path, count: int, on_item: Callable[[int], None] = lambda done: None) -> int:
    """Write a set's first items into a folder; what an earlier call left there is used again where it is enough.

    Args:
        name: of ``SETS``.
        on_item: told how many items are made.

    Returns:
        How many items there are: ``count``, or more from an earlier call.

    Raises:
        UserError: where the folder holds anything else, cannot be written, or the set's libraries are not installed.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        task = folder / f"{task_name(name)}.yaml"
        if any(folder.iterdir()) and not task.is_file():
            raise UserError(f"{folder}: holds other files; give a new folder")
        there = len((folder / LIST).read_text(encoding="utf-8").splitlines()) if (folder / LIST).is_file() else 0
        if there >= count:
            return there
        items = SETS[name](count, on_item)
        longest = max(SENTENCE, WORLDS[name].longest) if name in WORLDS else SENTENCE
        write_whole(task, TASK.format(name=name, task=task_name(name), longest=longest))
        write_whole(folder / "pictures.py", PICTURES)
        lines = []
        for number, item in enumerate(items):
            picture = f"{number:05}.png"
            with replacing(folder / picture) as beside:
                item.open().save(beside)
            told = {"picture": picture, "question": item.question, "answer": item.answer, "kind": item.kind}
            more = {"listing": True} if item.listing else {}
            lines.append(json.dumps(told | more) + "\n")
        write_whole(folder / LIST, "".join(lines))  # last: whoever finds it finds the rest
    return len(items)


def folder_items(
    folder: Path,
    limit: int | None = None,
    on_item: Callable[[int], None] = lambda done: None,
    *,
    outside: bool = False,
) -> list[Item]:
    """The items that a folder's ``items.jsonl`` lists, one JSON object a line. Every picture is opened once.

    Args:
        outside: whether pictures may lie outside the folder.

    Raises UserError, with the number of the line, for a list or a picture that cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"--items {folder}: no such folder; give one that holds {LIST}")
    listed = folder / LIST
    if listed.exists() and (not listed.is_file() or listed.stat().st_size > LARGEST):
        raise UserError(f"{listed}: not a file, or larger than {LARGEST >> 20} MiB")
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
        if len(items) >= MAX_ITEMS:
            raise UserError(f"{listed}: more than {MAX_ITEMS} items; give --limit, or a shorter list")
        where = f"{listed} line {number}"
        entry = _entry(line, where)
        try:
            path = folder / entry.picture if outside else inside(folder, entry.picture)
            if path not in pictures:
                pictures[path] = open_picture(path).size, hashlib.sha256(path.read_bytes()).hexdigest()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        answer = entry.answer.strip()
        items.append(Item(path, *pictures[path], entry.question, answer, entry.kind, listing=entry.listing))
        on_item(len(items))
    if not items:
        raise UserError(f"{listed}: no items; it holds a line such as {EXAMPLE} an item")
    return items


Text = Annotated[str, Field(pattern=r"\S")]


class Entry(BaseModel):
    """A line of the list; keys besides these are ignored."""

    model_config = ConfigDict(strict=True)

    picture: Text
    question: Text
    answer: Text
    kind: str = ""
    listing: bool = False


def _entry(line: str, where: str) -> Entry:
    try:
        return Entry.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {place and f'{place}: '}{first['msg']}; give {EXAMPLE}") from None


def visual_in(folder: Path) -> Callable[[Mapping[str, str]], list[Image.Image]]:
    """The function that opens an item's picture from this folder."""

    def doc_to_visual(item: Mapping[str, str]) -> list[Image.Image]:
        return [open_picture(inside(folder, item["picture"]))]

    return doc_to_visual


def score(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """How right an answer is, by the rule of ``ptprune bench accuracy``."""
    return {"accuracy": mark(answers[0], item["answer"], item.get("listing", False))}
