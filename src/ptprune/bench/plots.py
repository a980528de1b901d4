"""Pictures: accuracy against keep ratio, and what any of them needs."""

from __future__ import annotations

from collections.abc import Container, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptprune.bench.candidates import NO_PRUNING, PTP, THUMBNAIL_ALONE
from ptprune.errors import UserError
from ptprune.files import check_writable, replacing, writing
from ptprune.results.rows import AccuracyRow
from ptprune.results.table import percent

ACCENT, MUTED = "#c1121f", "#a8b0b8"
ROOM = (0.55, 1.08)  # of the smallest and the largest ratio: where the axis begins and ends, names stand at its left
STYLES = ("-", "--", "-.", ":")
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
    """Every method a line with its 95% intervals and its name beside it, PTP above all others; levels are thin lines.

    Args:
        rows: name of a line -> rows of the results.
    """
    axes = blank(8, 5)
    levels = {name: line[0] for name, line in rows.items() if line[0].method in (NO_PRUNING, THUMBNAIL_ALONE)}
    lines = {name: sorted(line, key=_ratio) for name, line in rows.items() if name not in levels}
    ratios = sorted({_ratio(row) for line in lines.values() for row in line}) or [1.0]
    for row in levels.values():
        style = "--" if row.method == NO_PRUNING else ":"
        axes.plot([ratios[0], ratios[-1] * ROOM[1]], [row.accuracy] * 2, color="black", linestyle=style, linewidth=1)
    for number, (name, line) in enumerate(lines.items()):
        own = line[0].method == PTP
        shares, accuracy = [row.keep_ratio for row in line], [row.accuracy for row in line]
        colour, style = ACCENT if own else MUTED, STYLES[0 if own else number % len(STYLES)]
        above = 3 if own else 2  # PTP is drawn over all others
        axes.plot(
            shares,
            accuracy,
            marker="o",
            markersize=5 if own else 2,
            color=colour,
            zorder=above,
            label=name,
            linestyle=style,
            linewidth=3 if own else 1,
        )
        low, high = [row.low for row in line], [row.high for row in line]
        axes.fill_between(shares, low, high, color=colour, alpha=0.15 if own else 0.04, zorder=above - 2, linewidth=0)
    ends = {name: (line[0].keep_ratio or 0, line[0].accuracy) for name, line in lines.items()}
    ptp = {name for name, line in lines.items() if line[0].method == PTP}
    axes.set_xscale("log")
    axes.set_xticks(ratios, [percent(ratio) for ratio in ratios], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(ratios[0] * ROOM[0], ratios[-1] * ROOM[1])
    _label(axes, ends, {name: row.accuracy for name, row in levels.items()}, ptp)
    axes.set_xlabel("share of visual tokens kept")
    axes.set_ylabel("right answers, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    save(path, axes)


def _ratio(row: AccuracyRow) -> float:
    return row.keep_ratio or 0


def _label(axes: Any, ends: dict[str, tuple[float, float]], levels: dict[str, float], accented: Container[str]) -> None:
    """Write every line's name beside its left end, and every level's at the right, one below the other."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_ylim(low, high)
    step, start = (high - low) / 24, 0.93 * left / ROOM[0]
    wanted = sorted(ends, key=lambda name: ends[name][1])
    heights = _apart([ends[name][1] for name in wanted], step, low + step / 2, high - step / 2)
    for name, height in zip(wanted, heights, strict=True):
        own = name in accented
        colour = ACCENT if own else "dimgray"
        axes.annotate(
            name,
            ends[name],
            (start, height),
            ha="right",
            va="center",
            fontsize=8,
            color=colour,
            fontweight="bold" if own else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (1, 0.5),
            },
        )
    for name, height in levels.items():
        axes.annotate(
            name, (right / ROOM[1], height), (0, 3), textcoords="offset points", ha="right", va="bottom", fontsize=8
        )


def _apart(heights: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Increasing heights, moved so that none is nearer than ``step`` to the next: the mean of moving all up and all
    down, and inside the bounds where they fit."""
    up: list[float] = []
    for height in heights:
        up.append(max(height, up[-1] + step) if up else height)
    down: list[float] = []
    for height in reversed(heights):
        down.append(min(height, down[-1] - step) if down else height)
    placed = [(one + other) / 2 for one, other in zip(up, reversed(down), strict=True)]
    for number, height in enumerate(placed):
        placed[number] = max(height, low + step * number)
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], high - step * (len(placed) - 1 - number))
    return placed
