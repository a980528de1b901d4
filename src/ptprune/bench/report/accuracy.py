"""How many answers stay right: methods by keep ratio, all before one layer, by kind of question, and variants of ptp.

The page does not read a file's ``vs_ptp``: it compares with the ptp of the run that wrote the row last, and a file may
hold rows of several runs. The page compares rows with the ptp of the same table; the bootstrap is seeded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ptprune.bench.candidates import DOWNSAMPLE, PTP, RANDOM, key
from ptprune.bench.plots import draw
from ptprune.bench.report.lines import Line, Lines, changed, default_settings, differing, in_stages
from ptprune.bench.report.parts import Figures, facts, in_words, model_name, origin
from ptprune.bench.statistics import difference, marks_of
from ptprune.results.rows import AccuracyResults, AccuracyRow, Gain
from ptprune.results.table import escape, markdown, percent

BETTER, WORSE = "▲", "▼"
SPLITS = {"test": "test split", "dev": "development split", None: "a folder of items"}
SHARE_OFF = 0.01
"""A share of visual tokens that is off by less is only rounded to whole tokens a picture."""
Gains = dict[str, dict[float, Gain]]
"""Name of a line -> keep ratio -> how much better than ptp."""


def title(results: AccuracyResults) -> str:
    """Model and questions, as in "ptprune-tiny, 1000 questions, test split"."""
    number = "1 question" if results.items == 1 else f"{results.items} questions"
    world = "" if results.scenes is None else f" about {results.scenes}"
    return f"{model_name(results.model)}, {number}{world}, {SPLITS.get(results.split, results.split)}"


def methods_section(results: AccuracyResults, figures: Figures) -> list[str]:
    """The blocks about one file that compares methods."""
    rows = Lines(results)
    blocks = [f"### {escape(title(results))}", _subject(results, rows)]
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
        about = "Right answers by share of visual tokens kept"
        blocks.append(figures.add("accuracy", about, partial(draw, title=plain, rows=drawn)))
    for layer in rows.layers:
        blocks += [f"#### All methods before layer {layer}", *_compared(rows.before_layer(layer))]
    blocks += [*_by_kind(rows.unpruned, lines.get(PTP, {})), _left_out(rows)]
    return list(filter(None, blocks))


def variants_section(results: AccuracyResults) -> list[str]:
    """The blocks about one file that compares variants of ptp."""
    rows = Lines(results)
    ptp = rows.variant(PTP)
    base = next(iter(ptp.values())).settings if ptp else default_settings(PTP)
    same = [name for name, line in rows.variants().items() if line == ptp]
    variants = {name: line for name, line in rows.variants().items() if name not in same}
    settings = in_words(differing(base, default_settings(PTP))) or "its default settings"
    names = f" ({escape(', '.join(same))})" if same else ""
    lines = variants | {name: line for name, line in rows.with_defaults().items() if name in (RANDOM, DOWNSAMPLE)}
    compared = gains(lines, ptp)
    own = ["**ptp**, right answers in %", lambda ratio: score(ptp[ratio]) if ratio in ptp else None]
    words = {name: {r: gain_in_words(gain) for r, gain in line.items()} for name, line in compared.items()}
    cells = [own, *([escape(name), words.get(name, {}).get] for name in lines)]
    blocks = [
        f"### {escape(title(results))}",
        _subject(results, rows),
        f"ptp here has {settings}{names}; a variant changes what its name says, and nothing else.",
        _by_ratio(["difference from ptp, points"], ratios_of([*lines.values(), ptp]), cells),
        _claims({name: line for name, line in compared.items() if name in variants}, "variant"),
        *_encoded({"ptp": ptp, **variants}),
        "" if rows.compares_methods else _left_out(rows),
    ]
    return list(filter(None, blocks))


def gains(lines: Mapping[str, Line], ptp: Line) -> Gains:
    """Every row against ptp at the same keep ratio, without ptp itself and rows that cannot be compared."""
    found: Gains = {}
    for name, line in lines.items():
        for ratio, row in line.items():
            if ratio in ptp and key(row) != key(ptp[ratio]):
                found.setdefault(name, {})[ratio] = difference(marks_of(row), marks_of(ptp[ratio]))
    return found


def score(row: AccuracyRow) -> str:
    """Accuracy with its interval."""
    return f"{row.accuracy:.1f} [{row.low:.1f}, {row.high:.1f}]"


def gain_in_words(gain: Gain) -> str:
    """A difference with its interval and its mark."""
    return f"{gain.difference:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] {_mark(gain)}".strip()


def _mark(gain: Gain | None) -> str:
    """On which side of 0 the whole interval lies; empty where it holds 0."""
    return "" if gain is None or gain.low <= 0 <= gain.high else BETTER if gain.low > 0 else WORSE


def ratios_of(lines: Iterable[Line]) -> list[float]:
    """All keep ratios, largest first."""
    return sorted({ratio for line in lines for ratio in line}, reverse=True)


def _subject(results: AccuracyResults, rows: Lines) -> str:
    """The model, the questions, and what the unpruned model makes of them."""
    identity, split = results.runs[0].identity, SPLITS.get(results.split, results.split)
    pairs = {
        "model": f"{escape(model_name(results.model))} (fingerprint {identity['model'][:12]})",
        "questions": f"{results.items}, {split} (fingerprint {identity['items'][:12]})",
        "dtype": f"{identity['dtype']}, greedy, at most {identity['max_new_tokens']} new tokens",
        **origin(results.runs),
    }
    for name, row in (("unpruned", rows.unpruned), ("thumbnail alone", rows.thumbnail)):
        pairs[name] = f"{score(row)} % right, {row.kept_tokens:g} visual tokens a picture" if row else "not measured"
    return facts(pairs)


def _compared(lines: Mapping[str, Line]) -> list[str]:
    """The table of methods, and what follows from it."""
    compared = gains(lines, lines.get(PTP, {}))
    staged = {name: [ratio for ratio in line if in_stages(line[ratio])] for name, line in lines.items()}

    def cell(name: str, ratio: float) -> str | None:
        if ratio not in lines[name]:
            return None
        return f"{score(lines[name][ratio])} {_mark(compared.get(name, {}).get(ratio))}".strip()

    def layer(name: str) -> str:
        dropped = next(iter(lines[name].values())).settings.get("layer", "-")
        return f"{dropped} on" if staged[name] else str(dropped)

    cells = [[f"**{name}**" if name == PTP else name, layer(name), partial(cell, name)] for name in lines]
    blocks = [_by_ratio(["method", "layer"], ratios_of(lines.values()), cells), _claims(compared, "method")]
    parts = [_at_ratios(name, ratios, lines[name]) for name, ratios in staged.items() if ratios]
    if parts:
        who = "it drops" if len(parts) == 1 else "they drop"
        blocks.append(f"More work than the others at an equal ratio, since {who} in stages: {'; '.join(parts)}.")
    return [*blocks, *_work(lines)]


def work(row: AccuracyRow | None) -> str | None:
    """The row's work as a share of the unpruned model's."""
    return None if row is None or row.work is None else f"{100 * row.work:.1f}%"


def _work(lines: Mapping[str, Line]) -> list[str]:
    """The table by which methods compare at equal work; nothing where none was counted."""
    if not any(work(row) for line in lines.values() for row in line.values()):
        return []
    cells = [[name, lambda ratio, line=line: work(line.get(ratio))] for name, line in lines.items()]
    about = "Multiply-accumulates up to the first token, vision encoder included, as a share of the unpruned model's:"
    return [about, _by_ratio(["method"], ratios_of(lines.values()), cells)]


def encoded(row: AccuracyRow | None) -> str | None:
    """Shares of a picture's tiles that were encoded and, where fewer, of its tokens that went through all layers."""
    if row is None:
        return None
    tiles, tokens = (f"{100 * (share or 1.0):.1f}%" for share in (row.encoded_tiles, row.encoded_tokens))
    return tiles if tokens == tiles else f"{tiles}, {tokens}"


def _encoded(lines: Mapping[str, Line]) -> list[str]:
    """The table of what the vision tower did; nothing where it did the same for all."""
    if all(row.encoded_tokens is None for line in lines.values() for row in line.values()):
        return []
    cells = [[escape(name), lambda ratio, line=line: encoded(line.get(ratio))] for name, line in lines.items()]
    about = (
        "Share of a picture's tiles that the vision tower encoded, thumbnail included, and, where fewer, of its visual "
        "tokens that went through the whole tower:"
    )
    return [about, _by_ratio(["encoded"], ratios_of(lines.values()), cells)]


def _by_ratio(headers: list[str], ratios: list[float], rows: list[list[Any]]) -> str:
    """A table with a column for each ratio; the last entry of each row makes the cell of a ratio."""
    cells = [[*first, *(cell(ratio) or "not measured" for ratio in ratios)] for *first, cell in rows]
    return markdown([*headers, *(f"{percent(ratio)} kept" for ratio in ratios)], cells)


def _claims(compared: Gains, what: str) -> str:
    """The names of the lines that are better and worse than ptp, in words; each line is a "method" or "variant"."""
    number = sum(map(len, compared.values()))
    if not number:
        return "There is nothing here to compare ptp with."
    return f"""\
- {BETTER} Better than ptp: {_listed(compared, BETTER)}.
- {WORSE} Worse than ptp: {_listed(compared, WORSE)}.
- {number} comparisons, each with a 95% interval: about {0.05 * number:.1f} of them would be marked by chance if no \
{what} differed from ptp."""


def _listed(compared: Gains, side: str) -> str:
    parts = []
    for name, line in compared.items():
        ratios = [ratio for ratio in line if _mark(line[ratio]) == side]
        if ratios:
            parts.append(_at_ratios(name, ratios, line))
    return "; ".join(parts) or "none"


def _at_ratios(name: str, ratios: Sequence[float], line: Collection[float]) -> str:
    """A line's name and some of its ratios, in words."""
    every = len(ratios) == len(line) > 1
    return f"{escape(name)} at {'every ratio' if every else ', '.join(map(percent, sorted(ratios, reverse=True)))}"


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


def _retention(ptp: Line) -> str:
    kept = [f"{ptp[r].retention:.1f}% at {percent(r)}" for r in ratios_of([ptp]) if ptp[r].retention is not None]
    return f"Of the unpruned accuracy ptp retains {', '.join(kept)}." if kept else ""


def _by_kind(unpruned: AccuracyRow | None, ptp: Line) -> list[str]:
    columns = {} if unpruned is None else {"unpruned": unpruned}
    columns |= {f"ptp, {percent(ratio)} kept": ptp[ratio] for ratio in ratios_of([ptp])}
    kinds = dict.fromkeys(kind for row in columns.values() for kind in row.by_kind)
    if not kinds:
        return []
    rights = {kind: [row.by_kind.get(kind) for row in columns.values()] for kind in kinds}
    cells = [[escape(k), *("not measured" if v is None else f"{v:.1f}" for v in line)] for k, line in rights.items()]
    return ["#### By kind of question, right answers in %", markdown(["kind", *columns], cells)]


def _left_out(rows: Lines) -> str:
    """Names the rows that are in no table, so that nobody looks for them in vain."""
    names = [f"{row.method} ({in_words(changed(row))})" for row in rows.left_out()]
    return f"In the file, but in no table here: {'; '.join(names)}." if names else ""
