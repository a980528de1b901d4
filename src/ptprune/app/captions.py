"""What stands below the heat maps: what each level measures, with the settings that are in use."""

from __future__ import annotations

from ptprune.methods import PyramidTokenPruning
from ptprune.pruner import TokenPruner
from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TOKEN_SCORES
from ptprune.scores.registry import ScoreRegistry

TILE = "How much a tile needs to be encoded, told before it is. Hatched tiles were left out."
AMONG = {"tile": "within each tile's budget", "image": "over the whole picture"}
"""Ranking -> which tokens are compared."""


def captions(pruner: TokenPruner) -> dict[str, str]:
    """Level of ``explain.TITLES`` -> what its map shows."""
    if not isinstance(pruner, PyramidTokenPruning):
        return {
            "tile": TILE,
            "region": "What the method sets the tiles' budgets by.",
            "token": "What the method ranks tokens by.",
            "instruction": "What the method ranks tokens by.",
        }
    alike = "" if pruner.choose == "top" else " A token that resembles chosen ones counts less."
    again = (
        " The first of two cuts: the second counts what the question looks at later, too." if pruner.cuts_twice else ""
    )
    salient = " Salient tiles keep more tokens." if pruner.ranking == "tile" else " Tokens of salient tiles count more."
    return {
        "tile": TILE,
        "region": about(REGION_SCORES, pruner.region) + salient,
        "token": about(TOKEN_SCORES, pruner.token),
        "instruction": about(INSTRUCTION_SCORES, pruner.instruction),
        "fused": f"What tokens are ranked by, {AMONG[pruner.ranking]}.{alike}{again}",
    }


def about(registry: ScoreRegistry, name: str) -> str:
    """A score's own description as a sentence; nothing for settings that are no score."""
    told = registry[name].about if name in registry else ""
    return told if not told or told.endswith(".") else f"{told}."
