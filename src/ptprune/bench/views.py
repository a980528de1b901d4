"""Baselines without a pruner: the thumbnail alone, and a picture downsampled to as many tokens as pruning keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from ptprune.bench.candidates import DOWNSAMPLE, THUMBNAIL_ALONE
from ptprune.bench.examinee import AS_IT_IS, Examinee, Size, View
from ptprune.pruner import TokenPruner

SMALLEST = 4  # pixels a side
STEPS = 24  # sizes tried where a model has no tiles


def has_tiles(processor: Any) -> bool:
    """Whether one can tell a processor into how many tiles of one size to cut a picture."""
    return "max_patches" in processor.image_processor.valid_kwargs.__annotations__


class Views:
    """How a model's own processor shows less of a picture."""

    def __init__(self, examinee: Examinee) -> None:
        self.examinee = examinee
        self.image_processor = examinee.processor.image_processor
        self.downsampled = lru_cache(maxsize=None)(self._downsampled)

    def of(self, method: str, keep_ratio: float | None) -> Callable[[Size], View]:
        """How a method shows a picture of a (width, height)."""
        if method == DOWNSAMPLE:
            assert keep_ratio is not None
            return partial(self.downsampled, keep_ratio=keep_ratio)
        if method == THUMBNAIL_ALONE:
            return lambda size: View(self._tiles(1), self._tile)
        return lambda size: AS_IT_IS

    def _downsampled(self, size: Size, keep_ratio: float) -> View:
        """The view with the most tokens among those with at most as many as a pruner keeps.

        Where tiles can be counted: fewer tiles, and where even one tile has more tokens, a picture so much smaller in
        that tile. Otherwise a smaller picture.
        """
        full = self.examinee.tokens(size)
        budget = TokenPruner(keep_ratio=keep_ratio).num_kept(full)
        if full <= budget:
            return AS_IT_IS
        if has_tiles(self.examinee.processor):
            views = [View(self._tiles(number)) for number in range(1, self.image_processor.max_patches + 1)]
            side = (budget / self.examinee.tokens(size, views[0])) ** 0.5
            width, height = self._tile
            smallest = View(self._tiles(1), (max(SMALLEST, round(width * side)), max(SMALLEST, round(height * side))))
        else:
            side = (budget / full) ** 0.5
            views = [View((), _scaled(size, side * 0.97**step)) for step in range(STEPS)]
            smallest = views[0]
        fitting = [view for view in views if self.examinee.tokens(size, view) <= budget]
        return max(fitting, key=lambda view: self.examinee.tokens(size, view), default=smallest)

    @property
    def _tile(self) -> Size:
        size: Any = self.image_processor.size
        return size["width"], size["height"]

    @staticmethod
    def _tiles(number: int) -> tuple[tuple[str, Any], ...]:
        return (("crop_to_patches", True), ("max_patches", number))


def _scaled(size: Size, factor: float) -> Size:
    width, height = size
    return max(SMALLEST, round(width * factor)), max(SMALLEST, round(height * factor))
