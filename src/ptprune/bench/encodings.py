"""What of a picture is encoded: what benchmarks of speed and accuracy compare, and the settings that make it."""

from __future__ import annotations

from typing import Any

LLM, SALIENT, PATCHES, BOTH, RANDOM, FEWER = "llm", "salient", "patches", "both", "random", "fewer"
ENCODERS = (LLM, SALIENT, PATCHES, BOTH, RANDOM, FEWER)
"""``LLM``: the whole picture is encoded, tokens are dropped in the language model alone. ``SALIENT``: salient tiles.
``PATCHES``: all tiles, but patches are dropped inside the tower. ``BOTH``: salient tiles, and of them not all patches.
``RANDOM``: as many tiles as salient, at random. ``FEWER``: the processor cuts the picture into as many tiles as salient
encodes, and as many tokens stay."""


def settings_of(encoder: str, vision_layer: int | None = None, tiles: str | int = "salient") -> dict[str, Any]:
    """The settings of a pruner that encodes so.

    Args:
        vision_layer: where patches are dropped.
        tiles: those that are encoded where not all are.
    """
    return {
        "tiles": tiles if encoder in (SALIENT, BOTH, RANDOM) else "all",
        "vision_layer": vision_layer if encoder in (PATCHES, BOTH) else None,
        **({"tile_score": "random"} if encoder == RANDOM else {}),
    }


def middle(tower_layers: int) -> int:
    """Where patches are dropped unless told: earlier, they do not know enough of the picture to rank."""
    return max(1, tower_layers // 2)
