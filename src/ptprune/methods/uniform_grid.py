"""Uniform sampling of every region's grid: the baseline for every method that claims to know which tokens matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


@dataclass(kw_only=True)
class UniformGrid(TokenPruner):
    """Uniform grid: keep evenly spaced tokens of every tile, whatever they show; the baseline that sees everywhere.

    Source: none, it is the plain subsampling that papers compare with. Every region keeps the same share of its tokens,
    spread over rows and columns as evenly as whole numbers allow.
    """

    @property
    def needs_grids(self) -> bool:
        return True

    def select(self, image: ImageEvidence) -> Selection:
        layout = image.layout
        budgets = layout.even_budgets(self.budget(layout))
        kept = [
            tokens[even_cells(*region.grid, budget)]
            for region, tokens, budget in zip(layout.regions, layout.members_on_host(), budgets, strict=True)
            if budget
        ]
        return Selection(layout.upload(np.sort(np.concatenate(kept))))


def even_cells(rows: int, columns: int, number: int) -> list[int]:
    """Choose ``number`` evenly spaced cells of a grid, numbered row by row.

    As many lines are used as ``number`` squares of equal area would need. Lines differ by at most one cell.
    """
    if not number:
        return []
    lines = min(max(round(math.sqrt(number * rows / columns)), math.ceil(number / columns)), rows, number)
    counts = [(i + 1) * number // lines - i * number // lines for i in range(lines)]
    used = zip(_spread(rows, lines), counts, strict=True)
    return [row * columns + column for row, count in used for column in _spread(columns, count)]


def _spread(length: int, number: int) -> list[int]:
    """Choose ``number`` of ``length`` cells: those that contain the centres of ``number`` equal parts."""
    return [(2 * i + 1) * length // (2 * number) for i in range(number)]
