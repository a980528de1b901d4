"""What a speed benchmark is to measure, checked before a model is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptprune.bench.subject import Setup, shortened
from ptprune.checkpoints import Checkpoint
from ptprune.errors import SettingError
from ptprune.pruner import TokenPruner
from ptprune.results.origin import fingerprint
from ptprune.shapes import SHAPES


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        name: of the shape or checkpoint.
        fingerprint: of the checkpoint; of a shape its name, which says all.
        full_layers, full_vision_layers: those of the published model, of a shape.
        pruners: method -> pruner.
        new_tokens: at least two: the first pass and what decoding a token takes.
    """

    name: str
    fingerprint: str
    setup: Setup
    full_layers: int | None
    full_vision_layers: int | None
    pruners: Mapping[str, TokenPruner]
    rounds: int
    new_tokens: int


def plan_of(
    *,
    shape: str | None,
    model: str | None,
    layers: int | None,
    vision_layers: int | None,
    tiles: int,
    text_tokens: int,
    batch: int,
    pruners: Mapping[str, TokenPruner],
    rounds: int,
    new_tokens: int,
    device: str,
    dtype: str,
    attention: str,
) -> Plan:
    """A plan for a ``shape`` or a checkpoint (``model``).

    Args:
        dtype: "auto" is float32 on a CPU, else bfloat16.

    Raises:
        SettingError: for whatever cannot be measured.
    """
    cut = checkpoint = None
    if shape is None:
        if (layers, vision_layers) != (None, None):
            raise SettingError("layers: a checkpoint runs whole; leave it out, or give a --shape")
        checkpoint = Checkpoint.find(model)
        depth = int(checkpoint.config().get_text_config().num_hidden_layers)
    else:
        if shape not in SHAPES:
            raise SettingError(f"shape {shape}: unknown; give one of {', '.join(SHAPES)}")
        cut = shortened(SHAPES[shape], layers, vision_layers)
        if cut.family == "llava_next" and tiles == 1:
            raise SettingError(f"tiles 1: {shape} cuts every picture into two tiles at least; give 2 or more")
        depth = cut.text.layers
    deepest = max(pruner.layer for pruner in pruners.values())
    if deepest >= depth:
        raise SettingError(f"layer {deepest}: too deep, {depth} decoder layers run; give 0 to {depth - 1}")
    return Plan(
        name=checkpoint.name if checkpoint else shape or "",
        fingerprint=fingerprint(checkpoint.directory) if checkpoint else shape or "",
        setup=Setup(
            shape=cut,
            directory=str(checkpoint.directory) if checkpoint else None,
            tiles=tiles,
            text_tokens=text_tokens,
            batch=batch,
            device=device,
            dtype=("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype,
            attention=attention,
        ),
        full_layers=SHAPES[shape].text.layers if shape else None,
        full_vision_layers=SHAPES[shape].vision.layers if shape else None,
        pruners=pruners,
        rounds=rounds,
        new_tokens=new_tokens,
    )
