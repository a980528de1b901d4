"""How many answers stay right: methods by keep ratios, the same before one layer, and by kind of question."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ptprune.bench.candidates import PTP
from ptprune.bench.plots import draw
from ptprune.bench.report.comparison import claims, gains, in_words, ratios_of, score, scores
from ptprune.bench.report.figures import Figures
from ptprune.bench.report.lines import Line, Lines, changed, in_stages
from ptprune.bench.report.words import facts, model_name, origin
from ptprune.results.rows import AccuracyResults, AccuracyRow
from ptprune.results.table import escape, markdown, percent

SPLITS = {"test": "test split", "dev": "development split", None: "a folder of items"}
SHARE_OFF = 0.01
"""From here on a share of visual tokens is another one: less than this is rounding to whole tokens a picture."""


def title(results: AccuracyResults) -> str:
    """Model and questions, as in "ptprune-tiny, 1000 questions, test split"."""
    number = "1 question" if results.items == 1 else f"{results.items} questions"
    return f"{model_name(results.model)}, {number}, {SPLITS.get(results.split, results.split)}"


def subject(results: AccuracyResults, rows: Lines) -> str:
    """What was measured on what."""
    identity = results.runs[0].identity
    pairs = {
        "model": f"{escape(model_name(results.model))} (fingerprint {identity['model'][:12]})",
        "questions": f"{results.items}, {SPLITS.get(results.split, results.split)} "
        f"(fingerprint {identity['items'][:12]})",
        "dtype": f"{identity['dtype']}, greedy, at most {identity['max_new_tokens']} new tokens",
        **origin(results.runs),
    }
    for name, row in (("unpruned", rows.unpruned), ("thumbnail alone", rows.thumbnail)):
        pairs[name] = "not measured" if row is None else f"{_right(row)}, {row.kept_tokens:g} visual tokens a picture"
    return facts(pairs)


def section(results: AccuracyResults, figures: Figures) -> list[str]:
    """The blocks about one document that compares methods."""
    rows = Lines(results)
    blocks = [f"### {escape(title(results))}", subject(results, rows)]
    lines = rows.with_defaults()
    if not lines:
        blocks.append("No method was measured with its default settings.")
    else:
        blocks += ["#### Each method with its own default settings", *_compared(lines), _shares(rows, lines)]
        blocks.append(_retention(lines.get(PTP, {})))
        levels = {"unpruned": rows.unpruned, "thumbnail alone": rows.thumbnail}
        drawn = {name: [row] for name, row in levels.items() if row is not None}
        drawn |= {name: list(line.values()) for name, line in lines.items()}
        plain = title(results).replace("$", r"\$")  # no formulas in names
        blocks.append(
            figures.add(
                "accuracy", "Right answers by share of visual tokens kept", partial(draw, title=plain, rows=drawn)
            )
        )
    for layer in rows.layers:
        blocks += [f"#### All methods before layer {layer}", *_compared(rows.before_layer(layer))]
    blocks += _by_kind(rows.unpruned, lines.get(PTP, {}))
    blocks.append(left_out(rows))
    return [block for block in blocks if block]


def _compared(lines: Mapping[str, Line]) -> list[str]:
    compared = gains(lines, lines.get(PTP, {}))
    layers = {name: _layer(name, next(iter(line.values()))) for name, line in lines.items()}
    blocks = [scores(lines, compared, layers), "\n".join(claims(compared, "method"))]
    staged = [name for name in lines if in_stages(name)]
    if staged:
        blocks.append(f"More work than the others at an equal ratio, since it drops in stages: {', '.join(staged)}.")
    return blocks


def _layer(method: str, row: AccuracyRow) -> str:
    layer = row.settings.get("layer")
    if layer is None:
        return "-"
    return f"{layer} on" if in_stages(method) else str(layer)


def _shares(rows: Lines, lines: Mapping[str, Line]) -> str:
    """Rows that kept another share of the visual tokens than they were asked to."""
    if rows.unpruned is None:
        return ""
    found = []
    for name, line in lines.items():
        shares = {ratio: line[ratio].kept_tokens / rows.unpruned.kept_tokens for ratio in ratios_of([line])}
        others = [f"{100 * share:.1f}% for {percent(r)}" for r, share in shares.items() if abs(share - r) > SHARE_OFF]
        found += [f"{name} {', '.join(others)}"] if others else []
    return f"Shares of visual tokens that are not those asked for: {'; '.join(found)}." if found else ""


def _right(row: AccuracyRow) -> str:
    return f"{score(row)} % right"


def _retention(ptp: Line) -> str:
    kept = [f"{ptp[r].retention:.1f}% at {percent(r)}" for r in ratios_of([ptp]) if ptp[r].retention is not None]
    return f"Of the unpruned accuracy ptp retains {', '.join(kept)}." if kept else ""


def _by_kind(unpruned: AccuracyRow | None, ptp: Line) -> list[str]:
    columns = {} if unpruned is None else {"unpruned": unpruned}
    columns |= {f"ptp, {percent(ratio)} kept": ptp[ratio] for ratio in ratios_of([ptp])}
    kinds = dict.fromkeys(kind for row in columns.values() for kind in row.by_kind)
    if not kinds:
        return []
    cells = [[escape(kind), *(_cell(row, kind) for row in columns.values())] for kind in kinds]
    return ["#### By kind of question, right answers in %", markdown(["kind", *columns], cells)]


def _cell(row: AccuracyRow, kind: str) -> str:
    return f"{row.by_kind[kind]:.1f}" if kind in row.by_kind else "not measured"


def left_out(rows: Lines) -> str:
    """Names what is in no table, so that nobody looks for it in vain."""
    names = [f"{row.method} ({in_words(changed(row))})" for row in rows.left_out()]
    return f"In the file, but in no table here: {'; '.join(names)}." if names else ""
