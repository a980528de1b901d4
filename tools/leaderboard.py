"""The leaderboard as Markdown, made from the JSON files of ``ptprune bench accuracy`` and ``ptprune eval``.

Needs nothing but Python: the site is built without torch. ``tests/test_site.py`` reads the same files strictly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def leaderboard(folder: Path) -> str:
    """A section for each set of questions that a model was asked, its methods ranked by their mean over the ratios.

    Args:
        folder: of the files of results. Those of other kinds, ablations, and rows of a file's earlier runs with another
            model are left out.
    """
    parts = []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("kind") == "accuracy":
            rows = document["results"]
            if any(row["variants"] for row in rows):
                continue
            where = f", {document['split']} split" if document["split"] else ""
            world = f" about {document['scenes']}" if document.get("scenes") else ""
            title = f"{document['model']}: {document['items']} questions{world}{where}"
            parts.append(_section(title, document, path, rows, "accuracy"))
        elif document.get("kind") == "suite":
            models = [run["identity"].get("model") for run in document["runs"]]
            own = [row for row in document["rows"] if models[row["run"]] == models[-1]]
            for benchmark in dict.fromkeys(row["benchmark"] for row in own):
                rows = [row for row in own if row["benchmark"] == benchmark]
                parts.append(_section(f"{document['model']}: {benchmark}", document, path, rows, "score"))
    return "\n\n".join(parts) if parts else "No results yet."


def _section(title: str, document: Row, path: Path, rows: list[Row], key: str) -> str:
    ratios = sorted({row["keep_ratio"] for row in rows if row["keep_ratio"] not in (None, 1)}, reverse=True)
    lines: dict[str, dict[float | None, float]] = {}
    for row in rows:
        lines.setdefault(_name(row, rows), {})[row["keep_ratio"]] = row[key]
    ranked = sorted(lines.items(), key=lambda line: _rank(line[1], ratios), reverse=True)
    cells = [["method", *(f"{100 * ratio:g}% kept" for ratio in ratios)], ["---", *["---:"] * len(ratios)]]
    for name, scores in ranked:
        alone = next((score for ratio, score in scores.items() if ratio in (None, 1)), None)
        cells.append([name, *(_cell(scores.get(ratio, alone)) for ratio in ratios)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    runs = document["runs"]
    machines = ", ".join(dict.fromkeys(run["machine"] for run in runs))
    versions = ", ".join(f"{name} {number}" for name, number in runs[-1]["versions"].items()) or "not recorded"
    facts = f"`{path.name}`; machine: {_text(machines)}; versions: {_text(versions)}"
    return f"## {_text(title)}\n\n{table}\n\n{facts}"


def _rank(scores: dict[float | None, float], ratios: list[float]) -> float:
    """The mean over the ratios; what was not measured at all of them comes after what was."""
    alone = [score for ratio, score in scores.items() if ratio in (None, 1)]
    found = [scores[ratio] for ratio in ratios if ratio in scores] or alone
    complete = bool(alone) or len(found) == len(ratios)
    return sum(found) / len(found) + (1e6 if complete else 0)


def _name(row: Row, rows: Iterable[Row]) -> str:
    """The method, with those settings in which the rows of this method differ."""
    same = [other["settings"] for other in rows if other["method"] == row["method"]]
    differing = [name for name, value in row["settings"].items() if any(other.get(name) != value for other in same)]
    words = ", ".join(f"{name}={row['settings'][name]}" for name in differing)
    name = {"none": "unpruned", "thumbnail": "thumbnail alone"}.get(row["method"], row["method"])
    return _text(f"{name} ({words})" if words else name)


def _cell(score: float | None) -> str:
    return "" if score is None else f"{score:.1f}"


def _text(text: str) -> str:
    """A text from a file as one line without markup."""
    for mark in "\\`*_{}[]<>|#":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return " ".join(text.split())
