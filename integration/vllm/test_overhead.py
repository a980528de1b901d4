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


@pytest.mark.parametrize(
    ("level", "operations"), [("neighbourhood", 144), ("attention", 133), ("embedding", 98), ("none", 80)]
)
def test_pictures_share_the_reads(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, level: str, operations: int
) -> None:
    stock = counted(engines, monkeypatch, None, [WIDE])
    setting = {"keep_ratio": 0.5, "instruction": level}
    one, *more = (
        counted(engines, monkeypatch, setting, images) for images in ([WIDE], [WIDE, HIGH], [WIDE, HIGH, SQUARE])
    )
    assert one[0] - stock[0] <= operations
    for pictures, found in enumerate((one, *more), start=1):
        assert found[0] <= pictures * one[0], "no more than as many calls of one picture"
        assert found[1] - stock[1] == 3, "how many tiles, the plans, and what all budgets are computed from"


@pytest.mark.parametrize(("score", "operations"), [("detail", 8), ("attention", 164)])
def test_the_choice_of_tiles_reads_nothing(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, score: str, operations: int
) -> None:
    """Neither where pixels chose before, nor where the model chooses, which knows how many. There the operations are
    mostly those of another pass of the encoder, for the thumbnail."""
    whole = {"keep_ratio": 0.2, "instruction": "none"}
    for images in ([WIDE], [WIDE, HIGH, SQUARE]):
        [everything, some] = (
            counted(engines, monkeypatch, setting, images)
            for setting in (whole, whole | {"tiles": 2, "tile_score": score})
        )
        assert some[1] == everything[1]
        assert some[0] - everything[0] <= operations * len(images)
