"""The time to the first token of the stock model and of the pruned one, measured side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from ptprune.cost import Prompt, pruned_cost, unpruned_cost
from ptprune.pruner import TokenPruner
from ptprune.shapes import SHAPES

PHASES = ("vision", "select", "prefill", "rest")
ROUNDS = 9
SCALE, TILES, TEXT = "internvl2-2b", 12, 64  # a model and a prompt as they are used, for comparison


def compare(arms: dict[str, Callable[[], dict[str, float]]], say: Callable[[str], None]) -> dict[str, Any]:
    """Medians over rounds in which the arms run in turns, each first in every other round.

    Args:
        arms: "unpruned" and "pruned" -> ask for one token, and return the seconds by phase and in "total"; both have
            run before.
        say: told what is being done.

    Returns:
        The object ``first_token`` of ``ptprune run --compare``. A ratio is that of one round, so that a machine that
        slows down slows both sides.
    """
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(ROUNDS):
        say(f"timing the first token: round {number + 1} of {ROUNDS}")
        order = list(arms) if number % 2 else list(reversed(arms))
        rounds.append({name: arms[name]() for name in order})
    medians = {
        name: {phase: statistics.median(each[name][phase] for each in rounds) for phase in (*PHASES, "total")}
        for name in arms
    }
    ratios = [each["pruned"]["total"] / each["unpruned"]["total"] for each in rounds]
    return {"rounds": ROUNDS, **medians, "ratio": statistics.median(ratios)}


def at_scale(pruner: TokenPruner, share: float) -> dict[str, Any] | None:
    """What the same share of tokens brings a model of usual size, counted in multiply-accumulates up to the first
    token; None where the pruner's layer does not fit it.

    Args:
        share: of the visual tokens that stayed.
    """
    shape, prompt = SHAPES[SCALE], Prompt(TILES, TEXT)
    if pruner.layer >= shape.text.layers:
        return None
    pruned = pruned_cost(shape, prompt, share, pruner.layer)
    return {"model": SCALE, "tiles": TILES, "ratio": pruned.first_token / unpruned_cost(shape, prompt).first_token}
