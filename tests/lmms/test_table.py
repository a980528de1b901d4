"""From rows to the table of ``ptprune eval``, by numbers worked out by hand. Needs no lmms-eval."""

from __future__ import annotations

from typing import Any

from ptprune.lmms import table
from ptprune.results.rows import Run, SuiteResults, SuiteRow


def row(benchmark: str, method: str, ratio: float, score: float, kept: float = 10, seconds: float = 1) -> SuiteRow:
    return SuiteRow(
        benchmark=benchmark,
        method=method,
        keep_ratio=ratio,
        score=score,
        questions=1,
        tokens=kept,
        kept_tokens=kept,
        seconds=seconds,
    )


RUN = Run(machine="Abacus 3000", versions={}, identity={})
ROWS = [
    row("A", "none", 1.0, 80, 100, 4),
    row("A", "ptp", 0.5, 60, 50, 2),
    row("A", "random", 0.5, 40, 50, 1),
    row("B", "none", 1.0, 2000, 300, 8),
    row("B", "ptp", 0.5, 1900, 150, 4),
    row("B", "random", 0.5, 1000, 150, 3),
    row("C", "none", 1.0, 50),
    row("C", "ptp", 0.5, 10),  # the third arm did not come this far
]


def test_percent_of_the_unpruned_model() -> None:
    assert [r.retention for r in table.finish(ROWS)] == [100, 75, 50, 100, 95, 50, 100, 20]
    # nothing to compare with: not measured, or nothing right
    assert [r.retention for r in table.finish([row("A", "ptp", 0.5, 60)])] == [None]
    assert [r.retention for r in table.finish([row("A", "none", 1, 0), row("A", "ptp", 0.5, 3)])] == [None, None]


def test_means_over_the_benchmarks_that_all_arms_have() -> None:
    means = table.means(table.finish(ROWS))
    assert [(m.method, m.retention) for m in means] == [("none", 100), ("ptp", 85), ("random", 50)]
    assert [m.benchmarks for m in means] == [2, 2, 2]
    assert [m.kept_tokens for m in means] == [200, 100, 100]
    assert [m.seconds for m in means] == [6, 3, 2]
    without = table.means(table.finish([r for r in ROWS if r.method != "none"]))
    assert [m.retention for m in without] == [None, None]
    assert table.means([]) == []
    assert table.means(table.finish([ROWS[0], ROWS[4]])) == []  # no benchmark has both arms


def results(**more: Any) -> SuiteResults:
    rows = table.finish(ROWS)
    about: dict[str, Any] = {"runs": [RUN], "model": "m", "suite": "s", "limit": None, **more}
    return SuiteResults(rows=rows, means=table.means(rows), **about)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_table() -> None:
    text = table.page(results())
    assert text.splitlines()[0] == "# m, suite s"
    head, _, *lines = cells(text)
    assert head == ["benchmark", "unpruned", "ptp 50%", "random 50%"]
    assert lines[:3] == [
        ["A", "80.0", "60.0 (75.0%)", "40.0 (50.0%)"],
        ["B", "2000.0", "1900.0 (95.0%)", "1000.0 (50.0%)"],
        ["C", "50.0", "10.0 (20.0%)", "-"],
    ]
    assert "2 benchmarks" in lines[3][0]
    assert [line[1:] for line in lines[3:]] == [["100.0%", "85.0%", "50.0%"], ["200", "100", "100"], ["6", "3", "2"]]


def test_what_the_paper_lists_beside() -> None:
    expected = {"about": "who knows", "scores": {"A": 83.8, "D": 1}}
    text = table.page(results(expected=expected, skipped=[{"benchmark": "E", "reason": "no key"}], limit=5))
    assert "first 5 questions" in text.splitlines()[0]
    assert [line[-1] for line in cells(text)[2:]] == ["83.8", *["-"] * 5]
    assert any("E" in line and "no key" in line for line in text.splitlines())
    assert "who knows" in text


def test_names_are_no_markup() -> None:
    rows = [row("V*|x", "none", 1.0, 1)]
    text = table.page(SuiteResults(runs=[RUN], model="m", suite="s", limit=None, rows=rows))
    assert r"V\*\|x" in text
