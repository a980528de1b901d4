"""One table for every result: on the terminal, and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def terminal(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines, its first column text, the others numbers. Cells may hold rich's markup."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same in Markdown. Cells with text from outside have to go through ``escape``."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """A text from a file as one line and one cell of Markdown; nothing in it is markup."""
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", " ".join(text.split()))


def percent(ratio: float) -> str:
    """A share, as in "12.5%"."""
    return f"{100 * ratio:g}%"


def ratio(after: float, before: float) -> str:
    """The share that is left; empty where there was nothing."""
    return f"{after / before:.2f}" if before else ""


def duration(seconds: float) -> str:
    """Three digits in the unit that fits; "-" for nothing at all."""
    if not seconds:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def medians(rounds: int) -> str:
    """What a number over so many rounds is."""
    return "1 round" if rounds == 1 else f"medians of {rounds} rounds"


def size(number: float) -> str:
    """Bytes in the unit that fits."""
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB"))


def count(number: float) -> str:
    """Operations in the unit that fits."""
    return _scaled(number, 1000, ("", " k", " M", " G", " T"))


def _scaled(number: float, step: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if number < step:
            return f"{number:.3g}{unit}"
        number /= step
    return f"{number:.3g}{units[-1]}"
