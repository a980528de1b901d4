"""The time to the first token of the stock model and of the pruned one, measured side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ptprune.cost import Encoding, Prompt, kept_tokens, pruned_cost, unpruned_cost
from ptprune.errors import SettingError
from ptprune.pruner import TokenPruner
from ptprune.report import PruningReport, RegionReport
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


def at_scale(pruner: TokenPruner, report: PruningReport, vision_layers: int | None = None) -> dict[str, Any] | None:
    """What the same shares of tiles, patches and tokens bring a model of usual size, counted in multiply-accumulates up
    to the first token; None where the pruner's layers do not fit it.

    Args:
        report: of a prefill with this pruner, which tells the shares of tiles and tokens.
        vision_layers: of the model's own vision tower, whose ``vision_layer`` stands for the layer as deep in the
            larger one; None: the layer is taken as it is.
    """
    shape, prompt = SHAPES[SCALE], Prompt(TILES, TEXT)
    tiles = [region for image in report.images if len(image.regions) > 1 for region in _tiles(image.regions)]
    encoded = sum(region.encoded > 0 for region in tiles) / len(tiles) if tiles else 1.0
    deep = pruner.vision_layer
    if deep is not None and vision_layers is not None:
        deep = max(1, round(deep / vision_layers * shape.vision.layers))
    encoding = Encoding.of(pruner, round(encoded * TILES), deep)
    whole, kept = report.visual_tokens
    share = kept / whole
    visual = prompt.encoded * shape.tile_tokens
    try:
        stages = pruner.schedule(shape.text.layers, visual, kept_tokens(visual, share))
        pruned = pruned_cost(shape, prompt, share, pruner.layer, encoding=encoding, stages=stages)
    except SettingError:  # a layer that this model has not, or more stages than layers are left
        return None
    return {
        "model": SCALE,
        "tiles": TILES,
        "encoded_tiles": encoding.rows(prompt),
        "vision_layer": deep,
        "ratio": pruned.first_token / unpruned_cost(shape, prompt).first_token,
    }


def _tiles(regions: Sequence[RegionReport]) -> list[RegionReport]:
    return [region for region in regions if not region.is_thumbnail]
