"""The two ends of a command: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

Say = Callable[[str], None]


def out() -> Console:
    """Standard output, as it is now: tests and pipes replace it."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """The one JSON object of a command with --json, in ASCII: any standard output can take it."""
    print(json.dumps(document, indent=2))


@contextmanager
def progress(first: str) -> Iterator[Say]:
    """A spinner with a changing text on standard error; on a terminal only, so that logs stay clean."""
    with Console(file=sys.stderr).status(first) as status:
        yield status.update
