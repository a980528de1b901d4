"""What rows of results amount to: percent of the unpruned model, means, and one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ptprune.bench.accuracy import UNPRUNED


class Column(NamedTuple):
    """One arm of a comparison."""

    method: str
    keep_ratio: float

    @property
    def title(self) -> str:
        return "unpruned" if self.method == UNPRUNED else f"{self.method} {100 * self.keep_ratio:g}%"


def finish(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``retention``: percent of the unpruned model's score on the same benchmark.

    It is None where that score is 0 or was not measured.
    """
    unpruned = {row["benchmark"]: row["score"] for row in rows if row["method"] == UNPRUNED}

    def retention(row: dict[str, Any]) -> float | None:
        reference = unpruned.get(row["benchmark"])
        return round(100 * row["score"] / reference, 2) if reference else None

    return [{**row, "retention": retention(row)} for row in rows]


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm's mean over the benchmarks that all arms have: retention, visual tokens and seconds a question.

    Args:
        rows: of ``finish``.
    """
    columns = columns_of(rows)
    cells = {(row["benchmark"], Column(row["method"], row["keep_ratio"])): row for row in rows}
    names = dict.fromkeys(row["benchmark"] for row in rows)
    common = [name for name in names if all((name, column) in cells for column in columns)]
    document = []
    for column in columns if common else []:
        own = [cells[name, column] for name in common]
        kept = [row["retention"] for row in own if row["retention"] is not None]
        document.append(
            {
                "method": column.method,
                "keep_ratio": column.keep_ratio,
                "benchmarks": len(common),
                "retention": _mean(kept) if len(kept) == len(own) else None,
                "kept_tokens": _mean([row["kept_tokens"] for row in own]),
                "seconds": _mean([row["seconds"] for row in own]),
            }
        )
    return document


def columns_of(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The arms, in the order in which they first come."""
    return list(dict.fromkeys(Column(row["method"], row["keep_ratio"]) for row in rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def cells(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and lines: benchmarks, then what they come to."""
    rows = document["rows"]
    columns = columns_of(rows)
    expected = document.get("expected", {}).get("scores")
    found = {(row["benchmark"], Column(row["method"], row["keep_ratio"])): row for row in rows}
    headers = ["benchmark", *(column.title for column in columns), *(["paper, PTP"] if expected else [])]
    lines = []
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        line = [name, *(_score(found.get((name, column))) for column in columns)]
        if expected:
            line.append(f"{expected[name]:g}" if name in expected else "-")
        lines.append(line)
    if document["means"]:
        number = document["means"][0]["benchmarks"]
        over = "1 benchmark" if number == 1 else f"{number} benchmarks"
        blank = ["-"] if expected else []
        for title, key, form in (
            (f"mean retention, {over}", "retention", "{:.1f}%"),
            ("visual tokens a question", "kept_tokens", "{:.0f}"),
            ("seconds a question", "seconds", "{:.3g}"),
        ):
            values = [mean[key] for mean in document["means"]]
            lines.append([title, *("-" if value is None else form.format(value) for value in values), *blank])
    return headers, lines


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    share = "" if row["retention"] is None or row["method"] == UNPRUNED else f" ({row['retention']:.1f}%)"
    return f"{row['score']:.1f}{share}"


def markdown(document: Mapping[str, Any]) -> str:
    """The table with a title, what was skipped and why."""
    headers, lines = cells(document)
    table = [headers, ["---", *["---:"] * (len(headers) - 1)], *lines]
    text = [f"# {title(document)}", "", *("| " + " | ".join(line) + " |" for line in table)]
    notes = [f"- {skip['benchmark']}: skipped, {skip['reason']}" for skip in document["skipped"]]
    if "expected" in document:
        notes.append(f"- paper, PTP: {document['expected']['about']}")
    return "\n".join([*text, *(["", *notes] if notes else [])]) + "\n"


def title(document: Mapping[str, Any]) -> str:
    """What was evaluated."""
    limit = "" if document["limit"] is None else f", first {document['limit']} questions of each"
    return f"{document['model']}, suite {document['suite']}{limit}"
