"""Who is better than whom, on the same questions, in cells and in words.

A file's own ``vs_ptp`` is not read: it compares with the ptp of the run that wrote the row last, and a file may hold
rows of several runs. Which questions were right is in the file, and the bootstrap is seeded: here the ptp that rows
are compared to is the one of the same table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ptprune.bench.candidates import PTP, key
from ptprune.bench.report.lines import Line
from ptprune.bench.statistics import decode, difference
from ptprune.results.rows import AccuracyRow, Gain
from ptprune.results.table import escape, markdown, percent

BETTER, WORSE = "▲", "▼"
Gains = dict[str, dict[float, Gain]]
"""Name of a line -> keep ratio -> how much better than ptp."""


def gains(lines: Mapping[str, Line], ptp: Line) -> Gains:
    """Every row against ptp at the same keep ratio; what cannot be compared, or is ptp itself, is left out."""
    found: Gains = {}
    for name, line in lines.items():
        for ratio, row in line.items():
            if ratio in ptp and key(row) != key(ptp[ratio]):
                right = decode(row.right), decode(ptp[ratio].right)
                found.setdefault(name, {})[ratio] = difference(*right)
    return found


def mark(gain: Gain | None) -> str:
    """Which side of 0 the interval lies on, if it lies on one."""
    if gain is None:
        return ""
    return BETTER if gain.low > 0 else WORSE if gain.high < 0 else ""


def score(row: AccuracyRow) -> str:
    return f"{row.accuracy:.1f} [{row.low:.1f}, {row.high:.1f}]"


def gain_in_words(gain: Gain) -> str:
    return f"{gain.difference:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] {mark(gain)}".strip()


def ratios_of(lines: Iterable[Line]) -> list[float]:
    """All keep ratios, largest first."""
    return sorted({ratio for line in lines for ratio in line}, reverse=True)


def scores(lines: Mapping[str, Line], compared: Gains, layers: Mapping[str, str]) -> str:
    """Methods by keep ratios: accuracy with its interval, and the mark."""
    ratios = ratios_of(lines.values())

    def cell(name: str, ratio: float) -> str:
        if ratio not in lines[name]:
            return "not measured"
        return f"{score(lines[name][ratio])} {mark(compared.get(name, {}).get(ratio))}".strip()

    headers = ["method", "layer", *(f"{percent(ratio)} kept" for ratio in ratios)]
    names = {name: f"**{name}**" if name == PTP else name for name in lines}
    return markdown(headers, [[names[name], layers[name], *(cell(name, ratio) for ratio in ratios)] for name in lines])


def differences(lines: Mapping[str, Line], compared: Gains, ptp: Line) -> str:
    """Variants by keep ratios: how far from ptp, whose own accuracy is the first row."""
    ratios = ratios_of([*lines.values(), ptp])

    def cell(name: str, ratio: float) -> str:
        gain = compared.get(name, {}).get(ratio)
        return "not measured" if gain is None else gain_in_words(gain)

    own = ["**ptp**, right answers in %", *(score(ptp[ratio]) if ratio in ptp else "not measured" for ratio in ratios)]
    rows = [[escape(name), *(cell(name, ratio) for ratio in ratios)] for name in lines]
    return markdown(["difference from ptp, points", *(f"{percent(ratio)} kept" for ratio in ratios)], [own, *rows])


def claims(compared: Gains, what: str) -> list[str]:
    """Who is better than ptp, and whom ptp is better than, in words.

    Args:
        what: the names of the lines are of: "methods", "variants".
    """
    number = sum(map(len, compared.values()))
    if not number:
        return ["There is nothing here to compare ptp with."]
    return [
        f"- {BETTER} Better than ptp: {_listed(compared, BETTER)}.",
        f"- {WORSE} Worse than ptp: {_listed(compared, WORSE)}.",
        f"- {number} comparisons, each with a 95% interval: about {0.05 * number:.1f} of them would be marked by "
        f"chance if no {what} differed from ptp.",
    ]


def _listed(compared: Gains, side: str) -> str:
    parts = []
    for name, line in compared.items():
        ratios = [ratio for ratio in sorted(line, reverse=True) if mark(line[ratio]) == side]
        if ratios:
            every = len(ratios) == len(line) > 1
            parts.append(f"{escape(name)} at {'every ratio' if every else ', '.join(map(percent, ratios))}")
    return "; ".join(parts) or "none"


def in_words(settings: Mapping[str, Any]) -> str:
    return escape(", ".join(f"{name}={value}" for name, value in settings.items()))
