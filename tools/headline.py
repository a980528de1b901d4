"""Write the README's table from the files in ``benchmarks/results``: ``python -m tools.headline README.md``.

A row for ptp in each world, and one for ptp as in the paper, the best of all other methods at that ratio, and random.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ptprune.bench.report.lines import default_settings

from .marked import write_between

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
WORLDS = {"documents": "pages of small print", "crowded": "crowded scenes", "usual": "usual scenes"}
RATIOS = (0.5, 0.25, 0.1, 0.05)
LAYER = 2
"""Every method in the table drops before this layer."""
MARK = "results"
"""What the README's part is called."""

Accuracy = dict[tuple[str, float], str]
"""(method, keep ratio) -> right answers in %."""


def accuracy(document: dict[str, Any]) -> Accuracy:
    rows = [row for row in document["results"] if row["keep_ratio"] and _as_usual(row)]
    return {(row["method"], row["keep_ratio"]): f"{row['accuracy']:.1f}" for row in rows}


def _as_usual(row: dict[str, Any]) -> bool:
    """Whether a row's settings are the method's defaults, but for the layer, which is the table's."""
    usual = {**default_settings(row["method"]), "layer": LAYER}
    return all(usual.get(name) == value for name, value in row["settings"].items())


def headline(documents: dict[str, dict[str, Any]]) -> str:
    """The table. ``documents``: world -> its file of ``ptprune bench accuracy``, all with the same methods."""
    measured = {world: accuracy(document) for world, document in documents.items()}
    (questions,) = {document["items"] for document in documents.values()}
    known = {method for right in measured.values() for method, _ in right}
    others = sorted(known - {"none", "ptp", "ptp-paper", "random", "downsample"})
    lines = [
        "Measured: right answers of the checkpoint that ships with this package to "
        f"{questions} questions about {questions} unseen pictures of each world, in %, dropping nothing before layer "
        f"{LAYER}. Best other: at each ratio, the best of {', '.join(others[:-1])} and {others[-1]}.",
        "",
        "| visual tokens kept | all | " + " | ".join(f"{100 * ratio:g}%" for ratio in RATIOS) + " |",
        "| --- |" + " ---: |" * (1 + len(RATIOS)),
    ]
    for number, (world, right) in enumerate(measured.items()):
        cells = [right["ptp", ratio] for ratio in RATIOS]
        lines.append(f"| {WORLDS[world]}: **`ptp`** | {right['none', 1.0]} | {' | '.join(cells)} |")
        cells = []
        for ratio in RATIOS:
            best = max((right[other, ratio] for other in others), key=float)
            cells.append(f"{right['ptp-paper', ratio]}, {best}, {right['random', ratio]}")
        paper = "as in the paper" if number else "as in the paper (`ptp-paper`)"
        lines.append(f"| {paper}, best other, random | | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    documents = {world: json.loads((RESULTS / f"accuracy-{world}.json").read_text()) for world in WORLDS}
    write_between(Path(sys.argv[1]), MARK, headline(documents))


if __name__ == "__main__":
    main()
