"""Pictures: accuracy against keep ratio, and what any of them needs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptprune.bench.candidates import NO_PRUNING, THUMBNAIL_ALONE
from ptprune.errors import UserError
from ptprune.files import check_writable, replacing, writing
from ptprune.results.rows import AccuracyRow

FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raises UserError where the plot could not be drawn or written, before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--plot {path}: give a name that ends in {', '.join(FORMATS)}")
    check_writable(path, "--plot")
    require("--plot")


def require(what: str) -> None:
    """Raises UserError where nothing can be drawn."""
    if find_spec("matplotlib") is None:
        raise UserError(f"{what} needs matplotlib; install the extra: pip install 'ptprune[scenes]'")


def blank(width: float, height: float) -> Any:
    """Axes of a new figure of so many inches, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def save(path: Path, axes: Any) -> None:
    """Write the figure of some axes."""
    with writing(path), replacing(path) as beside:
        axes.figure.savefig(beside, dpi=150)


def draw(path: Path, title: str, rows: dict[str, list[AccuracyRow]]) -> None:
    """Every method a line with its 95% intervals; what has one row only is a level.

    Args:
        rows: name of a line -> rows of the results.
    """
    axes = blank(8, 5)
    colours = [f"C{number % 10}" for number in range(len(rows))]
    for number, (name, line) in enumerate(rows.items()):
        if line[0].method in (NO_PRUNING, THUMBNAIL_ALONE):
            style = "--" if line[0].method == NO_PRUNING else ":"
            axes.axhline(line[0].accuracy, color="black", linestyle=style, linewidth=1, label=name)
            continue
        line = sorted(line, key=lambda row: row.keep_ratio or 0)
        ratios, accuracy = [row.keep_ratio for row in line], [row.accuracy for row in line]
        style = ("-", "--", "-.", ":")[number // 10 % 4]
        axes.plot(ratios, accuracy, marker="o", markersize=3, color=colours[number], linestyle=style, label=name)
        axes.fill_between(
            ratios, [row.low for row in line], [row.high for row in line], color=colours[number], alpha=0.1
        )
    axes.set_xlabel("share of visual tokens kept")
    axes.set_ylabel("right answers, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save(path, axes)
