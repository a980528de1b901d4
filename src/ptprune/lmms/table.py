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
    """Rows with their ``retention`` on the same benchmark."""
    unpruned = {row.benchmark: row.score for row in rows if row.method == NO_PRUNING}

    def retention(row: SuiteRow) -> float | None:
        reference = unpruned.get(row.benchmark)
        return round(100 * row.score / reference, 2) if reference else None

    return [row.model_copy(update={"retention": retention(row)}) for row in rows]


def means(rows: Sequence[SuiteRow]) -> list[Mean]:
    """Each column's mean over the benchmarks that all columns have, of rows that ``finish`` returned."""
    columns, benchmarks = _arranged(rows)
    common = [found for found in benchmarks.values() if len(found) == len(columns)]
    means = []
    for method, ratio in columns if common else []:
        mine = [found[method, ratio] for found in common]
        kept = [row.retention for row in mine if row.retention is not None]
        retention = mean(kept) if len(kept) == len(mine) else None
        tokens, seconds = mean(row.kept_tokens for row in mine), mean(row.seconds for row in mine)
        means.append(
            Mean(
                method=method,
                keep_ratio=ratio,
                benchmarks=len(common),
                retention=retention,
                kept_tokens=tokens,
                seconds=seconds,
            )
        )
    return means


def _arranged(rows: Sequence[SuiteRow]) -> tuple[list[Column], dict[str, dict[Column, SuiteRow]]]:
    """The columns, and benchmark -> column -> row; both in the order of the rows."""
    benchmarks: dict[str, dict[Column, SuiteRow]] = {}
    for row in rows:
        benchmarks.setdefault(row.benchmark, {})[row.method, row.keep_ratio or 1.0] = row
    return list(dict.fromkeys((row.method, row.keep_ratio or 1.0) for row in rows)), benchmarks


def cells(results: SuiteResults) -> tuple[list[str], list[list[str]]]:
    """Headers and lines: benchmarks, then their means."""
    columns, benchmarks = _arranged(results.rows)
    expected = results.expected and results.expected["scores"]
    titles = ["unpruned" if method == NO_PRUNING else f"{method} {percent(ratio)}" for method, ratio in columns]
    headers = ["benchmark", *titles, *(["paper, PTP"] if expected else [])]
    lines = []
    for name, found in benchmarks.items():
        line = [name, *(_score(found.get(column)) for column in columns)]
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
    return "\n\n".join(filter(None, [f"# {escape(title(results))}", table, "\n".join(notes)])) + "\n"


def title(results: SuiteResults) -> str:
    """The model, the suite and the limit."""
    limit = "" if results.limit is None else f", first {results.limit} questions of each"
    return f"{results.model}, suite {results.suite}{limit}"
