"""The settings of what the vision encoder computes at all: which tiles, how many at a time, how much of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ptprune.scores.tiles import TILE_SCORES
from ptprune.settings import SHARE, Rule, Settings, is_whole, number, one_of, score_of, setting, whole

TILES = Rule(
    "'all', 'salient' or a whole number from 1",
    lambda value: value in ("all", "salient") if isinstance(value, str) else is_whole(value) and value >= 1,
)


SPARING: dict[str, Any] = {"tiles": "salient", "left_out": "background"}
"""What ``ptprune run`` encodes unless told: it lost no answers on scenes of every kind, see docs/results.md."""


@dataclass(kw_only=True)
class EncoderSettings(Settings):
    """What of a picture is encoded, for every method.

    Tokens of tiles and patches that are not encoded are dropped before the language model's first layer; no score looks
    at them. A thumbnail is always encoded.

    Attributes:
        tiles: which tiles are encoded: "all"; "salient" ones, see ``tile_threshold``; or a number of them, the best.
        tile_threshold: "salient" encodes the tiles whose score is at least this share of the best tile's.
        tile_score: how much a tile needs to be encoded, one of ``TILE_SCORES``.
        left_out: what becomes of tiles that are not encoded: "drop" drops their tokens before the language model;
            "background" gives them the features of the picture's quietest tile, the one with the lowest score.
        tile_batch: how many tiles the encoder takes at a time, which bounds its memory; None: all at once.
        vision_layer: the encoder's layer before which patches are dropped; None drops none.
        vision_margin: so many times a tile's share of the kept tokens pass that layer.
        vision_floor: at least this share of a tile's tokens pass that layer, however few are kept.
    """

    tiles: str | int = setting("all", TILES)
    tile_threshold: float = setting(0.1, SHARE)
    tile_score: str = setting("detail", score_of(TILE_SCORES))
    left_out: str = setting("drop", one_of("drop", "background"))
    tile_batch: int | None = setting(None, whole(1, optional=True))
    vision_layer: int | None = setting(None, whole(1, because="patches rank by the attention before", optional=True))
    vision_margin: float = setting(1.25, number("from 1 and finite", lambda value: 1 <= value < float("inf")))
    vision_floor: float = setting(0.0, SHARE)

    @property
    def leaves_out(self) -> bool:
        """Whether some of a picture may stay without being encoded."""
        return self.tiles != "all" or self.vision_layer is not None

    @property
    def encodes_apart(self) -> bool:
        """Whether the encoder is called in another way than the model calls it."""
        return self.leaves_out or self.tile_batch is not None


def tells_encoding(settings: Iterable[str]) -> bool:
    """Whether one of these settings, by name, says what of a picture is encoded."""
    return not EncoderSettings.__dataclass_fields__.keys().isdisjoint(settings)
