"""Asks a model about pictures, with or without pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ptprune.asking.meter import PhaseMeter, vision_lap
from ptprune.clock import Clock
from ptprune.pruner import TokenPruner

PHASES = ("vision", "select", "prefill", "decode")


@dataclass(frozen=True)
class Answer:
    """One call of generate().

    Attributes:
        text: what the model said.
        new_tokens: how many tokens that took.
        seconds: "vision" (ViT and projector), "select" (all of the pruner's own work), "prefill" (the first pass of the
            language model, without the former two), "decode" (all later passes), "total" (the call, wall clock).
        kv_bytes: keys and values of all layers right after the prefill: the prompt's share of the cache.
        full_kv_bytes: the same had nothing been dropped.
    """

    text: str
    new_tokens: int
    seconds: dict[str, float]
    kv_bytes: int
    full_kv_bytes: int


def ask(
    model: Any,
    processor: Any,
    inputs: Any,
    pruner: TokenPruner | None,
    max_new_tokens: int,
    on_pass: Callable[[int], None] = lambda number: None,
) -> Answer:
    """Answer greedily, with or without pruning.

    Args:
        inputs: of one prompt, as ``make_prompt`` returns them.
        on_pass: told before each forward pass how many there were, to show progress.

    Raises:
        PtpruneError: where the pruner refuses the model or the prompt.
    """
    clock = Clock()
    meter = PhaseMeter(model, clock, on_pass)
    inputs = inputs.to(model.device)
    length = inputs["input_ids"].shape[1]
    with meter.watch():
        # an unpruned model is timed by us, a pruned one by its pruner
        arm = vision_lap(model, clock) if pruner is None else pruner(model, clock=clock)
        with arm, torch.no_grad(), clock.lap("rest"):
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    new = output[0, length:]
    seconds = {phase: clock.seconds[phase] for phase in PHASES} | {"total": sum(clock.seconds.values())}
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return Answer(text, len(new), seconds, meter.kv_bytes, meter.full_kv_bytes)
