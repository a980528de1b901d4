"""What the plots show: PTP above all others, every line with its name beside it, bars that end where they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra: scenes")

from ptprune.bench import plots
from ptprune.bench.accuracy import row_of
from ptprune.bench.candidates import Candidate
from ptprune.bench.report import speed
from ptprune.results.file import read
from ptprune.results.rows import SpeedResults

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of what is drawn, instead of files."""
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda path, axes: drawn.append(axes))
    return drawn


def test_ptp_is_drawn_over_its_rivals_and_all_lines_are_labelled(axes: list[Any]) -> None:
    def line(method: str, *right: str) -> list[Any]:
        ratios = (0.5, 0.1) if len(right) > 1 else (1.0,)
        return [row_of(Candidate(method, r), marks, 5.0, [""] * 4) for r, marks in zip(ratios, right, strict=True)]

    rows = {"unpruned": line("none", "1111"), "ptp": line("ptp", "1110", "1110"), "random": line("random", "10", "00")}
    rows["fastv"] = line("fastv", "1110", "1110")
    plots.draw(Path("unused.png"), "a title", rows)
    [shown] = axes
    lines = {one.get_label(): one for one in shown.get_lines()}
    for rival in ("random", "fastv"):
        assert lines["ptp"].get_zorder() > lines[rival].get_zorder()
        assert lines["ptp"].get_linewidth() > 2 * lines[rival].get_linewidth()
        assert lines["ptp"].get_color() != lines[rival].get_color()
    texts = {one.get_text(): one for one in shown.texts}
    assert set(texts) == set(rows)
    assert shown.get_legend() is None
    heights = sorted(texts[name].xyann[1] for name in ("ptp", "random", "fastv"))
    low, high = shown.get_ylim()
    assert min(np.diff(heights)) >= (high - low) / 25


def test_labels_keep_apart_and_inside() -> None:
    placed = plots._apart([1, 1, 1, 9, 9.5, 10], 1, 0.5, 10)
    assert placed == pytest.approx([0.5, 1.5, 2.5, 8, 9, 10])
    assert plots._apart([3.0], 1, 0, 10) == [3]
    assert plots._apart([2.0, 5.0, 8.0], 1, 0, 10) == [2, 5, 8]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("speed-*.json")), ids=lambda path: path.stem)
def test_bars_end_at_the_time_to_the_first_token(axes: list[Any], path: Path) -> None:
    results = read(path)
    assert isinstance(results, SpeedResults)
    speed._draw(results, Path("unused.png"))
    [shown] = axes
    rows = results.rows[::-1]
    ends = [max(bar.get_x() + bar.get_width() for bar in group) for group in zip(*shown.containers, strict=True)]
    whole = next(row for row in rows if row.arm == "unpruned").ttft_s.median
    assert ends == pytest.approx([row.ttft_s.median / whole for row in rows])
    assert ends[-1] == pytest.approx(1)
