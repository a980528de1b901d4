"""How a page words where its numbers come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath

from ptprune.results.rows import Run
from ptprune.results.table import escape


def facts(pairs: Mapping[str, str]) -> str:
    """One line a fact."""
    return "\n".join(f"- {name}: {value}" for name, value in pairs.items())


def origin(runs: Sequence[Run]) -> dict[str, str]:
    """Machine and versions of all runs that a file holds rows of."""
    versions = [", ".join(f"{escape(name)} {escape(number)}" for name, number in run.versions.items()) for run in runs]
    return {
        "machine": "; ".join(dict.fromkeys(escape(run.machine) for run in runs)),
        "versions": "; ".join(dict.fromkeys(filter(None, versions))) or "not recorded",
    }


def model_name(name: str) -> str:
    """A name on the Hub as it is; of a directory its own name, not where on a machine it lies."""
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        return name
    return PureWindowsPath(name).name or "a checkpoint"
