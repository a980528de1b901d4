"""Parts that every section of a page is made of: facts, names, and plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import quote

from ptprune.results.rows import Run
from ptprune.results.table import escape


@dataclass
class Figures:
    """The plots of a page: sections announce them, and they are drawn once the whole page is composed."""

    folder: str  # name of the folder beside the page that holds them
    drawn: dict[str, Callable[[Path], None]] = field(default_factory=dict)  # name of a file -> what draws it

    def add(self, kind: str, about: str, draw: Callable[[Path], None]) -> str:
        """Markdown that shows a new plot."""
        name = f"{kind}-{1 + sum(name.startswith(kind) for name in self.drawn)}.png"
        self.drawn[name] = draw
        return f"![{about}]({quote(self.folder)}/{name})"


def facts(pairs: Mapping[str, str]) -> str:
    """A list, one line a fact."""
    return "\n".join(f"- {name}: {value}" for name, value in pairs.items())


def origin(runs: Sequence[Run]) -> dict[str, str]:
    """Machine and versions of all runs that a file holds rows of."""
    versions = [", ".join(f"{escape(name)} {escape(number)}" for name, number in run.versions.items()) for run in runs]
    return {
        "machine": "; ".join(dict.fromkeys(escape(run.machine) for run in runs)),
        "versions": "; ".join(dict.fromkeys(filter(None, versions))) or "not recorded",
    }


def model_name(name: str) -> str:
    """A Hub name as it is; for a directory its own name, without the path to it."""
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        return name
    return PureWindowsPath(name).name or "a checkpoint"


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings as in "tiles=salient, tile_batch=4"."""
    return escape(", ".join(f"{name}={value}" for name, value in settings.items()))
