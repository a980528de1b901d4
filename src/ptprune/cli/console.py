"""The two ends of a command: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from ptprune.text import printable


class CleanConsole(Console):
    """A console whose own markup has effects, and nothing that stands in the texts."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def out(width: int = 0) -> Console:
    """Standard output, as it is now: tests and pipes replace it.

    Args:
        width: at least so many columns. Lines may wrap; numbers are never cut.
    """
    console = CleanConsole(file=sys.stdout, highlight=False, soft_wrap=True)
    console.width = max(console.width, width)
    return console


def note(what: str) -> None:
    """Something that a user should know besides the results, in one line on standard error."""
    print(f"ptprune: {' '.join(printable(what).split())}", file=sys.stderr)


def print_json(document: dict[str, Any]) -> None:
    """The one JSON object of a command with --json, in ASCII: any standard output can take it."""
    print(json.dumps(document, indent=2))


@dataclass(frozen=True)
class Work:
    """The line on standard error that says what a command is doing, with a bar where the end is known."""

    _progress: Progress
    _task: TaskID

    def say(self, doing: str, total: int | None = None) -> None:
        """Begin something; ``total`` is how many parts it has, if that is known."""
        self._progress.reset(self._task, description=printable(doing), total=total)

    def done(self, parts: int) -> None:
        """So many parts of it are done."""
        self._progress.update(self._task, completed=parts)

    def advance(self, doing: str, parts: int) -> None:
        """So many more parts are done, the last of them of this."""
        self._progress.update(self._task, advance=parts, description=printable(doing))


@contextmanager
def working(doing: str) -> Iterator[Work]:
    """Show progress; on a terminal only, so that logs stay clean, and in the first of several processes only."""
    console = Console(file=sys.stderr)
    hidden = not console.is_terminal or os.environ.get("RANK", "0") != "0"
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()
    progress = Progress(*columns, console=console, transient=True, disable=hidden)
    with nullcontext() if hidden else progress:  # a disabled one of rich 13.0 ends with an empty line
        yield Work(progress, progress.add_task(doing, total=None))


def quiet_libraries() -> None:
    """Keep the libraries' notices and bars off the terminal: a command speaks for itself."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
