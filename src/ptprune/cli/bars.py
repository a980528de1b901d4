"""Progress bars of commands that know how much there is to do; for the others see ``console.progress``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars on standard error; on a terminal only, so that logs stay clean, and of one process only."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    hidden = not console.is_terminal or os.environ.get("RANK", "0") != "0"
    with Progress(console=console, transient=True, disable=hidden) as progress:
        yield progress


@contextmanager
def waiting(progress: Progress, doing: str, total: int | None = None) -> Iterator[Any]:
    """A bar while something is being loaded; yields what sets how much of it is done."""
    task = progress.add_task(doing, total=total)
    yield lambda done: progress.update(task, completed=done)
    progress.remove_task(task)
