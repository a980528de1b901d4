"""``ptprune items``: write questions and pictures that need no network, for both ways of measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptprune.bounds import MAX_ITEMS
from ptprune.cli.console import out, working
from ptprune.errors import UserError

COUNT = 1000


def items(
    name: Annotated[str, typer.Argument(metavar="NAME", help="scenes, a world, easy-vqa.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, max=MAX_ITEMS, help="How many.")] = COUNT,
) -> None:
    """Write test questions as a folder, for `bench accuracy --items` and as a task of lmms-eval."""
    with working(f"drawing {name}") as work:
        from ptprune.bench.items import folder as folders

        if name not in folders.SETS:
            why = (
                "asked in two turns, only by bench accuracy --scenes dialogue"
                if name == folders.DIALOGUE
                else "unknown"
            )
            raise UserError(f"NAME {name}: {why}; give {' or '.join(folders.SETS)}")
        work.say(f"drawing {name}", count)
        written = folders.write(name, folder, count, work.done)
    out().print(f"{written} items in {folder}, task {folders.task_name(name)}", soft_wrap=True)
