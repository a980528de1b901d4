"""What pruning adds to a call of the vision encoder, which runs between other requests' steps: counted, not timed."""

from __future__ import annotations

from typing import Any

import pytest
from engines import HIGH, SQUARE, WIDE, Engines, turn
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration

from ptprune.bench.overhead import count

QUESTION = "which digit is blue?"


def counted(engines: Engines, monkeypatch: pytest.MonkeyPatch, setting: Any, images: list[Any]) -> tuple[int, int]:
    """(operations, reads) of the call of the encoder for a prompt with these pictures."""
    engine, found = engines.get("native", setting), []
    encode = InternS1ForConditionalGeneration.embed_multimodal

    def counting(self: Any, **kwargs: Any) -> Any:
        counts, returned = count(lambda: encode(self, **kwargs))
        found.append((sum(counts.operations.values()), sum(counts.reads.values())))
        return returned

    with monkeypatch.context() as patch:
        patch.setattr(InternS1ForConditionalGeneration, "embed_multimodal", counting)
        engines.ask(engine, (turn(QUESTION, images=len(images)), images))
    [call] = found
    return call


@pytest.mark.parametrize("level", ["attention", "embedding", "none"])
def test_reads_do_not_grow_with_pictures(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    setting = {"keep_ratio": 0.5, "instruction": level}
    added = []
    for images in ([WIDE], [WIDE, HIGH], [WIDE, HIGH, SQUARE]):
        stock = counted(engines, monkeypatch, None, images)
        pruned = counted(engines, monkeypatch, setting, images)
        added.append((pruned[0] - stock[0], pruned[1] - stock[1]))
    with open("/tmp/vllm_counts", "a") as f: print(level, added, file=f)
