"""Questions as a folder: for ``ptprune bench accuracy --items``, and a task that any model of lmms-eval can answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ptprune.bench.items import LIST, Item, scene_items
from ptprune.bench.store import write_whole
from ptprune.errors import UserError
from ptprune.evaluation.easyvqa import easy_vqa_items

Make = Callable[[int, Callable[[int], None]], list[Item]]

SETS: dict[str, Make] = {"scenes": partial(scene_items, "test"), "easy-vqa": easy_vqa_items}
"""What can be written, by name: how so many items are made."""

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
process_results: !function ptprune.evaluation.local.score
generation_kwargs:
  max_new_tokens: 32
  do_sample: false
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""
PICTURES = '''\
"""Written by `ptprune items`: where the pictures of this folder's task are."""

from pathlib import Path

from ptprune.evaluation.local import visual_in

doc_to_visual = visual_in(Path(__file__).parent)
'''


def task_name(name: str) -> str:
    """What the task of a set is called in lmms-eval."""
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        task = folder / f"{task_name(name)}.yaml"
        if any(folder.iterdir()) and not task.is_file():
            raise UserError(f"{folder}: holds other files; give a new folder")
        there = _written(folder / LIST)
        if there >= count:
            return there
        items = SETS[name](count, on_item)
        write_whole(task, TASK.format(name=name, task=task_name(name)))
        write_whole(folder / "pictures.py", PICTURES)
        write_whole(folder / LIST, _save(items, folder))  # last: whoever finds it finds the rest
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return len(items)


def _written(listed: Path) -> int:
    return len(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else 0


def _save(items: Sequence[Item], folder: Path) -> str:
    """The pictures; returns the list of items."""
    lines = []
    for number, item in enumerate(items):
        picture = f"{number:05}.png"
        item.open().save(folder / picture)
        told = {"picture": picture, "question": item.question, "answer": item.answer, "kind": item.kind}
        lines.append(json.dumps(told) + "\n")
    return "".join(lines)
