"""Summary of a suite's rows: percent of the unpruned model, means, and one table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from ptprune.bench.candidates import NO_PRUNING
from ptprune.results.rows import Mean, SuiteResults, SuiteRow
from ptprune.results.table import escape, markdown, percent

Column = tuple[str, float]
"""Method and keep ratio."""


def finish(rows: Sequence[SuiteRow]) -> list[SuiteRow]:
    """Rows with ``retention``: percent of the unpruned model's score on the same benchmark.

    It is None where that score is 0 or was not measured.
    """
    unpruned = {row.benchmark: row.score for row in rows if row.method == NO_PRUNING}

    def retention(row: SuiteRow) -> float | None:
        reference = unpruned.get(row.benchmark)
        return round(100 * row.score / reference, 2) if reference else None

    return [row.model_copy(update={"retention": retention(row)}) for row in rows]


def means(rows: Sequence[SuiteRow]) -> list[Mean]:
    """Each column's mean over the benchmarks that all columns have.

    Args:
        rows: of ``finish``.
    """
    columns = columns_of(rows)
    cells = {(row.benchmark, _column(row)): row for row in rows}
    common = [name for name in _benchmarks(rows) if all((name, column) in cells for column in columns)]
    found = []
    for method, keep_ratio in columns if common else []:
        mine = [cells[name, (method, keep_ratio)] for name in common]
        kept = [row.retention for row in mine if row.retention is not None]
        found.append(
            Mean(
                method=method,
                keep_ratio=keep_ratio,
                benchmarks=len(common),
                retention=mean(kept) if len(kept) == len(mine) else None,
                kept_tokens=mean(row.kept_tokens for row in mine),
                seconds=mean(row.seconds for row in mine),
            )
        )
    return found


def _column(row: SuiteRow) -> Column:
    return row.method, 1.0 if row.keep_ratio is None else row.keep_ratio


def columns_of(rows: Sequence[SuiteRow]) -> list[Column]:
    """Each once, in the order of the rows."""
    return list(dict.fromkeys(map(_column, rows)))


def _benchmarks(rows: Sequence[SuiteRow]) -> list[str]:
    return list(dict.fromkeys(row.benchmark for row in rows))


def cells(results: SuiteResults) -> tuple[list[str], list[list[str]]]:
    """Headers and lines: benchmarks, then their means."""
    columns = columns_of(results.rows)
    expected = results.expected and results.expected["scores"]
    found = {(row.benchmark, _column(row)): row for row in results.rows}
    titles = ["unpruned" if method == NO_PRUNING else f"{method} {percent(ratio)}" for method, ratio in columns]
    headers = ["benchmark", *titles, *(["paper, PTP"] if expected else [])]
    lines = []
    for name in _benchmarks(results.rows):
        line = [name, *(_score(found.get((name, column))) for column in columns)]
        if expected:
            line.append(f"{expected[name]:g}" if name in expected else "-")
        lines.append(line)
    if results.means:
        number = results.means[0].benchmarks
        over = "1 benchmark" if number == 1 else f"{number} benchmarks"
        blank = ["-"] if expected else []
        kept = ["-" if mean.retention is None else f"{mean.retention:.1f}%" for mean in results.means]
        lines += [
            [f"mean retention, {over}", *kept, *blank],
            ["visual tokens a question", *(f"{mean.kept_tokens:.0f}" for mean in results.means), *blank],
            ["seconds a question", *(f"{mean.seconds:.3g}" for mean in results.means), *blank],
        ]
    return headers, lines


def _score(row: SuiteRow | None) -> str:
    if row is None:
        return "-"
    share = "" if row.retention is None or row.method == NO_PRUNING else f" ({row.retention:.1f}%)"
    return f"{row.score:.1f}{share}"


def page(results: SuiteResults) -> str:
    """The table in Markdown with a title, and which benchmarks were skipped and why."""
    headers, lines = cells(results)
    notes = [f"- {skip['benchmark']}: skipped, {skip['reason']}" for skip in results.skipped]
    if results.expected:
        notes.append(f"- paper, PTP: {results.expected['about']}")
    table = markdown([escape(header) for header in headers], [[escape(cell) for cell in line] for line in lines])
    return "\n\n".join(filter(None, [f"# {title(results)}", table, "\n".join(notes)])) + "\n"


def title(results: SuiteResults) -> str:
    """The model, the suite and the limit."""
    limit = "" if results.limit is None else f", first {results.limit} questions of each"
    return f"{results.model}, suite {results.suite}{limit}"
