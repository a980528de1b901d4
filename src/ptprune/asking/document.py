"""The JSON object of one ``ptprune run`` prompt."""

from __future__ import annotations

from typing import Any

from ptprune.asking.answer import Answer


def run_document(pruned: Answer, unpruned: Answer | None, report: dict[str, Any]) -> dict[str, Any]:
    """Keys as documented in docs/command-line.md.

    Args:
        unpruned: the same prompt without pruning, where it was asked for.
        report: ``PruningReport.to_dict()`` of a batch of one.
    """
    before, after = report["sequence_length"][0]
    kv_before = unpruned.kv_bytes if unpruned else pruned.full_kv_bytes
    document: dict[str, Any] = {
        "answer": pruned.text,
        "visual_tokens": dict(zip(("before", "after"), report["visual_tokens"], strict=True)),
        "sequence_length": {"before": before, "after": after},
        "kv_bytes": {"before": kv_before, "after": pruned.kv_bytes},
        "new_tokens": pruned.new_tokens,
        "seconds": pruned.seconds,
        "regions": [
            {
                "image": number,
                "row": region["row"],
                "column": region["column"],
                "is_thumbnail": region["is_thumbnail"],
                "tokens": len(region["indices"]),
                "grid": list(region["grid"]),
                "box": list(region["box"]),
                "budget": region["budget"],
                "saliency": region["saliency"],
            }
            for number, image in enumerate(report["images"])
            for region in image["regions"]
        ],
    }
    if unpruned:
        document["unpruned"] = {
            "answer": unpruned.text,
            "new_tokens": unpruned.new_tokens,
            "seconds": unpruned.seconds,
            "kv_bytes": unpruned.kv_bytes,
        }
    return document
