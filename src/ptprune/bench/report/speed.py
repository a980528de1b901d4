"""Times, memory and operations of each arm, ratios with their spread, and the targets beside."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ptprune.bench import plots
from ptprune.bench.arms import IDEAL, PRUNED, UNPRUNED
from ptprune.bench.encodings import BOTH
from ptprune.bench.report.parts import Figures, facts, in_words, model_name, origin
from ptprune.results.rows import SpeedResults, SpeedRow, Spread
from ptprune.results.table import count, duration, escape, markdown, medians, size

SELECT_SHARE, TO_IDEAL = 0.01, 1.03
"""Targets: the pruner's own work at most this share of the unpruned prefill; the prefill at most this much of the
ideal one."""
FIRST_TOKEN, PEAK = {0.5: 0.60, 0.25: 0.40}, 0.70
"""Targets of what the encoder is spared, in arms of ``BOTH``: the time to the first token at most this share of the
unpruned one, by keep ratio; the peak at most this share."""
VISION_CUT = "the vision tower is cut, so that its time and that to the first token are not the full model's."
DECODER_CUT = """a look, no numbers to quote. Most of the pruner's work is done once, not once a layer: its share is \
larger than the full model's by about as much as the decoder is shallower."""
STACKED = {"vision_s": "vision", "select_s": "select", "prefill_s": "prefill"}
SPREADS = {
    "vision_vs_unpruned": "vision to unpruned",
    "prefill_vs_unpruned": "prefill to unpruned",
    "prefill_vs_ideal": "prefill to ideal",
    "select_share": "select to unpruned prefill",
    "ttft_vs_unpruned": "first token to unpruned",
    "decode_vs_unpruned": "decode to unpruned",
}


def _title(results: SpeedResults) -> str:
    batch = f", batch {results.batch}" if results.batch > 1 else ""
    layers = sorted({row.layer for row in results.rows if row.layer})
    return f"{model_name(results.shape)} on {results.device}{batch}{''.join(f', layer {layer}' for layer in layers)}"


def section(results: SpeedResults, figures: Figures) -> list[str]:
    """The blocks about one document."""
    blocks = [f"### {escape(_title(results))}", facts(_subject(results))]
    if shallow(results):
        whole = results.layers == results.layers_of_shape
        blocks.append(f"Only {depth(results)}: {VISION_CUT if whole else DECODER_CUT}")
    blocks += [_markdown(arms_table(results)), f"Each number: {medians(results.rounds)}."]
    for arm in results.ratios:
        blocks += [_markdown(table(results, arm)) for table in (ratios_table, targets_table)]
    about = "Time to the first token by phase, unpruned = 1"
    return [*blocks, figures.add("speed", about, partial(_draw, results))]


def shallow(results: SpeedResults) -> bool:
    """Whether layers were left out."""
    return (results.layers, results.vision_layers) != (results.layers_of_shape, results.vision_layers_of_shape)


def _subject(results: SpeedResults) -> dict[str, str]:
    tokens, random = results.tokens, results.layers is not None
    counts = f"{tokens.visual} visual and {tokens.other} other tokens"
    return {
        "model": f"{escape(model_name(results.shape))}, "
        + (f"random weights at its proportions, {depth(results)}" if random else "a checkpoint, all layers"),
        "prompt": f"{results.tiles} tiles{_picture(results)}, {counts}, batch {results.batch}",
        **origin(results.runs),
        "device": f"{results.device}, threads {results.threads}",
        "dtype": f"{results.dtype}, attention {results.attention}",
        "runs": f"{_rounds(results)}, arms in turns, {results.new_tokens} new tokens",
        **{f"settings of {row.name}": in_words(row.settings) for row in results.rows if row.settings},
    }


def _picture(results: SpeedResults) -> str:
    """What is known of the picture's tiles, as the rest of a line."""
    picture = results.picture
    if picture is None or picture.filled_tiles is None:
        return " of noise"
    return f" of which {picture.filled_tiles} hold something (a scene, background: {picture.background})"


def depth(results: SpeedResults) -> str:
    """How many layers ran, and of how many."""
    return (
        f"{results.layers} of {results.layers_of_shape} decoder layers and "
        f"{results.vision_layers} of {results.vision_layers_of_shape} of the vision tower"
    )


def _rounds(results: SpeedResults) -> str:
    return f"{results.rounds} round{'' if results.rounds == 1 else 's'}"


def _name(row: SpeedRow) -> str:
    return f"{IDEAL}, as short" if row.arm == IDEAL else row.name


def arms_table(results: SpeedResults) -> list[list[str]]:
    """Headers, and a line for each arm: medians of its times, its memory, and its operations."""
    lines = [["arm", "kept", "layer", "tiles", "tokens", "vision", "select", "prefill", "first token"]]
    lines[0] += ["decode, a token", "peak", "KV cache", "MACs to first token"]
    for row in results.rows:
        lines.append(
            [
                _name(row),
                "-" if row.keep_ratio is None else f"{100 * row.keep_ratio:g}%",
                "-" if row.layer is None else str(row.layer),
                "-" if row.encoded_tiles is None else str(row.encoded_tiles),
                str(row.tokens),
                *(duration(getattr(row, name).median) for name in (*STACKED, "ttft_s", "decode_s_per_token")),
                "not measured" if row.peak_bytes is None else size(row.peak_bytes),
                size(row.kv_bytes),
                "not counted" if row.macs is None else count(row.macs["first_token"]),
            ]
        )
    return lines


def ratios_table(results: SpeedResults, arm: str) -> list[list[str]]:
    """Headers, and a line for each ratio of a pruned arm to the others."""
    ratios = results.ratios[arm]
    lines = [[arm, "median", "least", "most"]]
    for key, name in SPREADS.items():
        spread: Spread | None = getattr(ratios, key)
        if spread is None:  # an older file
            continue
        lines.append([name, *(f"{value:.4f}" for value in (spread.median, spread.min, spread.max))])
    peak = "not measured" if ratios.peak is None else f"{ratios.peak:.4f}"
    return [*lines, ["KV cache to unpruned", f"{ratios.kv:.4f}", "-", "-"], ["peak to unpruned", peak, "-", "-"]]


def targets_table(results: SpeedResults, arm: str) -> list[list[str]]:
    """Headers, and a line for each target: its bound, the median or the exact count, and whether that is enough."""
    ratios, tokens = results.ratios[arm], results.tokens
    unpruned = next(row for row in results.rows if row.arm == UNPRUNED)
    pruned = next(row for row in results.rows if row.arm == PRUNED and row.name == arm)
    share, ideal, peak = ratios.select_share.median, ratios.prefill_vs_ideal.median, ratios.peak
    to_ideal = f"no target: layers before {pruned.layer} run on all tokens" if pruned.layer else _met(ideal <= TO_IDEAL)
    exact = pruned.kv_bytes * tokens.before == unpruned.kv_bytes * tokens.after[arm]
    kept, held = f"{tokens.after[arm]} of {tokens.before}", f"{size(pruned.kv_bytes)} of {size(unpruned.kv_bytes)}"
    most, below = (PEAK, f"at most {PEAK}") if pruned.encoder == BOTH else (1, "not above unpruned")
    highest = ["not measured"] * 2 if peak is None else [f"{peak:.4f}", _met(peak <= most)]
    lines = [
        [f"target: {arm}", "aimed at", "measured", ""],
        ["select share", f"at most {SELECT_SHARE:.0%}", f"{share:.2%}", _met(share <= SELECT_SHARE)],
        ["prefill to ideal", f"at most {TO_IDEAL}", f"{ideal:.4f}", to_ideal],
        ["KV cache", f"exactly {kept} tokens", held, _met(exact)],
        ["peak", below, *highest],
    ]
    if pruned.encoder == BOTH and (bound := FIRST_TOKEN.get(pruned.keep_ratio or 1)) is not None:
        first = ratios.ttft_vs_unpruned.median
        lines.append(["first token to unpruned", f"at most {bound}", f"{first:.4f}", _met(first <= bound)])
    return lines


def _markdown(lines: list[list[str]]) -> str:
    headers, *rows = ([escape(line[0]), *line[1:]] for line in lines)
    return markdown(headers, rows)


def _met(reached: bool) -> str:
    return "met" if reached else "**missed**"


def _draw(results: SpeedResults, path: Path) -> None:
    """Every arm a bar as long as its median time to the first token, unpruned = 1, divided as its phases' medians are.

    Medians do not add up: those of the phases alone would end beside the median of their sum.
    """
    rows = results.rows[::-1]  # the first on top
    whole = next(row for row in rows if row.arm == UNPRUNED).ttft_s.median
    axes = plots.blank(8, 1.2 + 0.45 * len(rows))
    ends, places = [0.0] * len(rows), range(len(rows))
    scales = [row.ttft_s.median / whole / sum(getattr(row, key).median for key in STACKED) for row in rows]
    for key, name in STACKED.items():
        parts = [getattr(row, key).median * scale for row, scale in zip(rows, scales, strict=True)]
        axes.barh(places, parts, left=ends, label=name)
        ends = [end + part for end, part in zip(ends, parts, strict=True)]
    axes.set_yticks(places, [f"{_name(row)} ({row.tokens} tokens)".replace("$", r"\$") for row in rows])
    axes.set_xlabel("time to the first token, unpruned = 1")
    axes.set_title(_title(results).replace("$", r"\$"))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save(path, axes)
