"""Markdown: tables, lists of facts, and texts of others made harmless."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath


def escape(text: str) -> str:
    """A text from a file, so that it stays one line and one cell, and nothing in it is markup."""
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", " ".join(text.split()))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column names, the others numbers."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts(pairs: Mapping[str, str]) -> str:
    """One line a fact."""
    return "\n".join(f"- {name}: {value}" for name, value in pairs.items())


def percent(ratio: float) -> str:
    """A share of visual tokens."""
    return f"{100 * ratio:g}%"


def model_name(name: str) -> str:
    """A name on the Hub as it is; of a directory its own name, not where on a machine it lies."""
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        return name
    return PureWindowsPath(name).name or "a checkpoint"
