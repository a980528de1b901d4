"""What papers report: on other models, other questions and other machines, so in tables of their own."""

from __future__ import annotations

from ptprune.results.rows import PublishedResults
from ptprune.results.table import escape, markdown


def section(results: PublishedResults) -> list[str]:
    """The blocks about one collection of numbers."""
    blocks = []
    for entry in results.tables:
        rows = [[escape(row.method), *(_cell(value) for value in row.values), escape(row.source)] for row in entry.rows]
        headers = ["method", *map(escape, entry.columns), "source"]
        blocks += [
            f"### {escape(entry.title)}",
            f"Model: {escape(entry.model)}. Unit: {escape(entry.unit)}.",
            markdown(headers, rows),
        ]
    return blocks


def _cell(value: float | str | None) -> str:
    return "-" if value is None else escape(value) if isinstance(value, str) else f"{value:g}"
