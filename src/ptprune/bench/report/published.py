"""What papers report: on other models, other questions and other machines, so in tables of their own."""

from __future__ import annotations

from ptprune.bench.report.documents import Document
from ptprune.bench.report.markdown import escape, table


def section(document: Document) -> list[str]:
    """The blocks about one collection of numbers."""
    blocks = []
    for entry in document["published"]:
        rows = [
            [escape(row["method"]), *(_cell(value) for value in row["values"]), escape(row["source"])]
            for row in entry["rows"]
        ]
        headers = ["method", *map(escape, entry["columns"]), "source"]
        blocks += [
            f"### {escape(entry['title'])}",
            f"Model: {escape(entry['model'])}. Unit: {escape(entry['unit'])}.",
            table(headers, rows),
        ]
    return blocks


def _cell(value: float | str | None) -> str:
    return "-" if value is None else escape(value) if isinstance(value, str) else f"{value:g}"
