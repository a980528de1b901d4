"""From rows to the table of ``ptprune eval``, by numbers worked out by hand. Needs no lmms-eval."""

from __future__ import annotations

from typing import Any

import pytest

from ptprune.lmms import table


def row(
    benchmark: str, method: str, ratio: float, score: float, kept: float = 10, seconds: float = 1
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "method": method,
        "keep_ratio": ratio,
        "score": score,
        "kept_tokens": kept,
        "seconds": seconds,
    }


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
    assert [r["retention"] for r in table.finish(ROWS)] == [100, 75, 50, 100, 95, 50, 100, 20]
    # nothing to compare with: not measured, or nothing right
    assert [r["retention"] for r in table.finish([row("A", "ptp", 0.5, 60)])] == [None]
    assert [r["retention"] for r in table.finish([row("A", "none", 1, 0), row("A", "ptp", 0.5, 3)])] == [None, None]


def test_means_over_the_benchmarks_that_all_arms_have() -> None:
    means = table.means(table.finish(ROWS))
    assert [(m["method"], m["retention"]) for m in means] == [("none", 100), ("ptp", 85), ("random", 50)]
    assert [m["benchmarks"] for m in means] == [2, 2, 2]
    assert [m["kept_tokens"] for m in means] == [200, 100, 100]
    assert [m["seconds"] for m in means] == [6, 3, 2]
    without = table.means(table.finish([r for r in ROWS if r["method"] != "none"]))
    assert [m["retention"] for m in without] == [None, None]
    assert table.means([]) == []
    assert table.means(table.finish([ROWS[0], ROWS[4]])) == []  # no benchmark has both arms


def document(**more: Any) -> dict[str, Any]:
    rows = table.finish(ROWS)
    about = {"model": "m", "suite": "s", "limit": None}
    return {**about, "rows": rows, "means": table.means(rows), "skipped": [], **more}


def test_the_table() -> None:
    assert table.markdown(document()) == (
        "# m, suite s\n"
        "\n"
        "| benchmark | unpruned | ptp 50% | random 50% |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| A | 80.0 | 60.0 (75.0%) | 40.0 (50.0%) |\n"
        "| B | 2000.0 | 1900.0 (95.0%) | 1000.0 (50.0%) |\n"
        "| C | 50.0 | 10.0 (20.0%) | - |\n"
        "| mean retention, 2 benchmarks | 100.0% | 85.0% | 50.0% |\n"
        "| visual tokens a question | 200 | 100 | 100 |\n"
        "| seconds a question | 6 | 3 | 2 |\n"
    )


def test_what_the_paper_lists_beside() -> None:
    expected = {"about": "who knows", "scores": {"A": 83.8, "D": 1}}
    text = table.markdown(document(expected=expected, skipped=[{"benchmark": "E", "reason": "no key"}], limit=5))
    lines = text.splitlines()
    assert lines[0] == "# m, suite s, first 5 questions of each"
    assert lines[2].endswith("| random 50% | paper, PTP |")
    assert lines[4].endswith("| 83.8 |")
    assert all(line.endswith("| - |") for line in lines[5:10])
    assert lines[-2:] == ["- E: skipped, no key", "- paper, PTP: who knows"]


@pytest.mark.parametrize(("ratio", "title"), [(0.25, "ptp 25%"), (0.125, "ptp 12.5%")])
def test_titles(ratio: float, title: str) -> None:
    assert table.Column("ptp", ratio).title == title
