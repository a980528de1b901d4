"""Times, memory and operations of each arm, ratios with their spread, and the targets beside."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ptprune.bench import plots
from ptprune.bench.arms import IDEAL, PRUNED, UNPRUNED
from ptprune.bench.report.documents import Document
from ptprune.bench.report.figures import Pictures
from ptprune.bench.report.markdown import escape, facts, model_name, table
from ptprune.cli.presenting import count, duration, size

SELECT_SHARE, TO_IDEAL = 0.01, 1.03
"""Targets: the pruner's own work at most this share of the unpruned prefill; the prefill at most this much of the
ideal one."""
STACKED = {"vision_s": "vision", "select_s": "select", "prefill_s": "prefill"}
SPREADS = {
    "prefill_vs_unpruned": "prefill to unpruned",
    "prefill_vs_ideal": "prefill to ideal",
    "select_share": "select to unpruned prefill",
    "ttft_vs_unpruned": "first token to unpruned",
    "decode_vs_unpruned": "decode to unpruned",
}


def title(document: Document) -> str:
    """Shape and device."""
    return f"{model_name(document['shape'])} on {document['device']}"


def section(document: Document, pictures: Pictures) -> list[str]:
    """The blocks about one document."""
    blocks = [f"### {escape(title(document))}", facts(_subject(document))]
    if shallow(document):
        if document["layers"] == document["layers_of_shape"]:
            told = "the vision tower is cut, so that its time and that to the first token are not the full model's."
        else:
            told = (
                "a look, no numbers to quote. Most of the pruner's work is done once, not once a layer: its share is "
                "larger than the full model's by about as much as the decoder is shallower."
            )
        blocks.append(f"Only {_depth(document)}: {told}")
    blocks += [_arms(document), f"Medians of {_rounds(document)}."]
    for method in document["ratios"]:
        blocks += [_ratios(document, method), _targets(document, method)]
    about = "Time to the first token by phase, unpruned = 1"
    return [*blocks, pictures.add("speed", about, partial(_draw, document))]


def shallow(document: Document) -> bool:
    """Whether layers were left out."""
    return any(document[name] != document[f"{name}_of_shape"] for name in ("layers", "vision_layers"))


def _subject(document: Document) -> dict[str, str]:
    tokens, random = document["tokens"], document["layers"] is not None
    return {
        "model": f"{escape(model_name(document['shape']))}, "
        + (f"random weights at its proportions, {_depth(document)}" if random else "a checkpoint, all layers"),
        "prompt": f"{document['tiles']} tiles, {tokens['visual']} visual and {tokens['other']} other tokens, "
        f"batch {document['batch']}",
        "machine": f"{escape(document['machine'])}, device {document['device']}, threads {document['threads']}",
        "dtype": f"{document['dtype']}, attention {document['attention']}",
        "versions": ", ".join(
            f"{escape(name)} {escape(str(version))}" for name, version in document["versions"].items()
        ),
        "runs": f"{_rounds(document)}, arms in turns, {document['new_tokens']} new tokens",
    }


def _depth(document: Document) -> str:
    return (
        f"{document['layers']} of {document['layers_of_shape']} decoder layers and "
        f"{document['vision_layers']} of {document['vision_layers_of_shape']} of the vision tower"
    )


def _rounds(document: Document) -> str:
    return f"{document['rounds']} round{'' if document['rounds'] == 1 else 's'}"


def _name(row: dict[str, Any]) -> str:
    return row["method"] if row["arm"] == PRUNED else f"{IDEAL}, as short" if row["arm"] == IDEAL else row["arm"]


def _arms(document: Document) -> str:
    headers = ["arm", "kept", "layer", "tokens", "vision", "select", "prefill", "first token", "decode, a token"]
    rows = [
        [
            escape(_name(row)),
            "-" if row["keep_ratio"] is None else f"{100 * row['keep_ratio']:g}%",
            "-" if row["layer"] is None else str(row["layer"]),
            str(row["tokens"]),
            *(duration(row[name]["median"]) for name in (*STACKED, "ttft_s", "decode_s_per_token")),
            "not measured" if row["peak_bytes"] is None else size(row["peak_bytes"]),
            size(row["kv_bytes"]),
            "not counted" if row["macs"] is None else count(row["macs"]["first_token"]),
        ]
        for row in document["rows"]
    ]
    return table([*headers, "peak", "KV cache", "MACs to first token"], rows)


def _ratios(document: Document, method: str) -> str:
    ratios = document["ratios"][method]
    rows = [[name, *(f"{ratios[key][part]:.4f}" for part in ("median", "min", "max"))] for key, name in SPREADS.items()]
    rows += [["KV cache to unpruned", f"{ratios['kv']:.4f}", "-", "-"]]
    rows += [["peak to unpruned", "not measured" if ratios["peak"] is None else f"{ratios['peak']:.4f}", "-", "-"]]
    return table([escape(method), "median", "least", "most"], rows)


def _targets(document: Document, method: str) -> str:
    """What was aimed at, what came out, and whether that is enough: by medians, and counts where they are exact."""
    ratios, tokens = document["ratios"][method], document["tokens"]
    unpruned = next(row for row in document["rows"] if row["arm"] == UNPRUNED)
    pruned = next(row for row in document["rows"] if row["method"] == method)
    share, ideal, peak = ratios["select_share"]["median"], ratios["prefill_vs_ideal"]["median"], ratios["peak"]
    exact = pruned["kv_bytes"] * tokens["before"] == unpruned["kv_bytes"] * tokens["after"][method]
    aimed = "target: " + escape(method)
    rows = [
        ["select share", f"at most {SELECT_SHARE:.0%}", f"{share:.2%}", _met(share <= SELECT_SHARE)],
        [
            "prefill to ideal",
            f"at most {TO_IDEAL}",
            f"{ideal:.4f}",
            _met(ideal <= TO_IDEAL)
            if not pruned["layer"]
            else f"no target: layers before {pruned['layer']} run on all tokens",
        ],
        [
            "KV cache",
            f"exactly {tokens['after'][method]} of {tokens['before']} tokens",
            f"{size(pruned['kv_bytes'])} of {size(unpruned['kv_bytes'])}",
            _met(exact),
        ],
        [
            "peak",
            "not above unpruned",
            "not measured" if peak is None else f"{peak:.4f}",
            "not measured" if peak is None else _met(peak <= 1),
        ],
    ]
    return table([aimed, "aimed at", "measured", ""], rows)


def _met(reached: bool) -> str:
    return "met" if reached else "**missed**"


def _draw(document: Document, path: Path) -> None:
    """Every arm a bar of its phases' medians, in units of the unpruned arm's time to the first token."""
    rows = document["rows"][::-1]  # the first on top
    whole = next(row for row in rows if row["arm"] == UNPRUNED)["ttft_s"]["median"]
    axes = plots.blank(8, 1.2 + 0.45 * len(rows))
    ends, places = [0.0] * len(rows), range(len(rows))
    for key, name in STACKED.items():
        parts = [row[key]["median"] / whole for row in rows]
        axes.barh(places, parts, left=ends, label=name)
        ends = [end + part for end, part in zip(ends, parts, strict=True)]
    axes.set_yticks(places, [f"{_name(row)} ({row['tokens']} tokens)".replace("$", r"\$") for row in rows])
    axes.set_xlabel("time to the first token, unpruned = 1")
    axes.set_title(title(document).replace("$", r"\$"))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save(path, axes)
