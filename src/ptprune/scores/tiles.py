"""How much a tile needs to be encoded, told before it is; which tiles are encoded [ours]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.errors import Refused
from ptprune.scores.answers import check_scores
from ptprune.scores.registry import Score, ScoreRegistry

BLOCKS = 16  # a side: 28 pixels of a tile of 448
EXTREME = 8  # of a tile's blocks count, so that one word in an empty tile does
NOISE = 1e-5  # of float32; a step of an 8-bit pixel is a thousand times as much
BETA = 0.3  # what attention cannot take from a tile's detail


@dataclass(frozen=True, eq=False)
class TileEvidence:
    """What is known of one picture's tiles before they are encoded.

    Attributes:
        pixels: [tiles, 3, height, width], without the thumbnail, as the processor normalised them.
        thumbnail_attention: returns a FloatTensor [tiles], the mean attention of the thumbnail's patches that lie in a
            tile's part of the picture: what [CLS] pays them at the feature layer, or else all patches on average.
            Calling it encodes the thumbnail first; a score that does names "encoder_attention" in its ``needs``.
    """

    pixels: Tensor
    thumbnail_attention: Callable[[], Tensor]

    @property
    def num_tiles(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @cached_property
    def block_errors(self) -> Tensor:
        """FloatTensor [tiles, blocks], the mean absolute error of each block of a tile when the tile is shrunk as much
        as the thumbnail shrinks the picture, and enlarged again.

        The thumbnail's own pixels are not used: a processor's filter and rounding would count as detail. A picture of
        ``n`` tiles is shrunk by ``sqrt(n)`` on both sides, whatever the grid, so that the grid need not be known.
        """
        height, width = self.pixels.shape[-2:]
        shrunk = self.num_tiles**0.5
        pixels = self.pixels.float()
        small = F.interpolate(pixels, size=(_shrunk(height, shrunk), _shrunk(width, shrunk)), mode="area")
        again = F.interpolate(small, size=(height, width), mode="bilinear")
        blocks = min(BLOCKS, height, width)
        return F.adaptive_avg_pool2d((pixels - again).abs_().mean(dim=1), blocks).flatten(1)


def _shrunk(side: int, by: float) -> int:
    return max(1, round(side / by))


class TileScore(Score):
    """A named score of tiles. One that asks for the thumbnail's attention ``needs`` "encoder_attention", so that vLLM
    knows whether pixels alone tell."""

    def compute(self, image: TileEvidence) -> Tensor:
        """FloatTensor [tiles] on the tiles' device, at least 0.

        Raises:
            MethodError: if the function returns anything else.
        """
        return check_scores(f"{self.level} score {self.name!r}", self.function(image), image.num_tiles, image.device)


TILE_SCORES = ScoreRegistry("tile_score", kind=TileScore)


@TILE_SCORES.register("detail")
def detail(image: TileEvidence) -> Tensor:
    """What the thumbnail cannot show, by pixels alone: the same for every question, and nothing is encoded for it.

    Detail is what differs from the picture's background, either way: print and edges have more error than it, and an
    object on noise or on leaves less. With ``e_t`` a tile's block errors,

        q = min_u (third quartile of e_u)              the background, which the quietest tile shows
        E_t = mean of the eight largest of e_t
        F_t = mean of the eight smallest of min(e_t, q)
        detail = max(0, E_t - q) + max_u F_u - F_t
    """
    errors = image.block_errors.sort(dim=1).values
    background = errors[:, ceil(0.75 * errors.shape[1]) - 1].min()
    more = (errors[:, -EXTREME:].mean(dim=1) - background).clamp(min=0.0)
    flat = errors[:, :EXTREME].clamp(max=background).mean(dim=1)
    return F.threshold(more + (flat.max() - flat), NOISE, 0.0)


@TILE_SCORES.register("attention", needs=("encoder_attention",))
def attention(image: TileEvidence) -> Tensor:
    """The thumbnail's attention that falls on a tile: the encoder's own view, but blind to what is too small for it."""
    return image.thumbnail_attention()


@TILE_SCORES.register("detail-attention", needs=("encoder_attention",))
def detail_attention(image: TileEvidence) -> Tensor:
    """Detail where the encoder looks: ``minmax(detail) * (0.3 + 0.7 * minmax(attention))`` over the picture's tiles."""
    found, seen = detail(image), image.thumbnail_attention()
    return found / found.max().clamp(min=1e-12) * (BETA + (1 - BETA) * _minmax(seen))


def _minmax(values: Tensor) -> Tensor:
    low, high = torch.aminmax(values)
    return (values - low) / (high - low).clamp(min=1e-12)


@TILE_SCORES.register("random")
def shuffled(image: TileEvidence) -> Tensor:
    """Detail in random order, to compare with: as many tiles are encoded as by detail, and others."""
    # the order is drawn from the pixels, so that a picture always has the same one, whatever else is in the batch
    drawn = (image.pixels.double().abs().mean(dim=(1, 2, 3)) * 1e6).frac()
    return detail(image)[drawn.argsort(stable=True)]


def choose_tiles(scores: Sequence[float], tiles: str | int, threshold: float) -> list[bool]:
    """Which tiles of one picture are encoded.

    Args:
        scores: one a tile, at least 0.
        tiles: "all"; "salient": those whose score is over 0 and at least ``threshold`` times the best one; or a number:
            so many of the best, equal ones by index, at most all.

    Raises:
        Refused: on scores that are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise Refused("the scores of tiles hold NaN or infinite values: the pixels overflowed")
    if tiles == "all":
        return [True] * len(values)
    if tiles == "salient":
        return ((values > 0) & (values >= threshold * values.max(initial=0.0))).tolist()
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind="stable")[: int(tiles)]] = True
    return chosen.tolist()
