"""Uniform sampling of every region's grid: what a method must beat that claims to know which tokens matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


@dataclass(kw_only=True)
class UniformGrid(TokenPruner):
    """Uniform grid: keep evenly spaced tokens of every tile, looking at nothing; the baseline that sees everywhere.

    Source: none, it is the plain subsampling that papers compare with. Every region keeps the same share of its tokens,
    spread over rows and columns as evenly as whole numbers allow.
    """

    def select(self, image: ImageEvidence) -> Selection:
        budgets = image.layout.even_budgets(self.num_kept(image.layout.num_tokens))
        kept = [
            tokens[torch.tensor(even_cells(*region.grid, budget), dtype=torch.long, device=tokens.device)]
            for region, tokens, budget in zip(image.layout.regions, image.layout.members(), budgets, strict=True)
        ]
        return Selection(torch.cat(kept).sort().values)


def even_cells(rows: int, columns: int, number: int) -> list[int]:
    """``number`` cells of a grid, counted row by row, as evenly spaced as can be.

    As many lines are used as squares of equal area would need; each line holds the same number of cells, or one more.
    """
    if not number:
        return []
    lines = min(max(round(math.sqrt(number * rows / columns)), math.ceil(number / columns)), rows, number)
    counts = [(i + 1) * number // lines - i * number // lines for i in range(lines)]
    return [
        row * columns + column
        for row, count in zip(_spread(rows, lines), counts, strict=True)
        for column in _spread(columns, count)
    ]


def _spread(length: int, number: int) -> list[int]:
    """``number`` of ``length`` cells: those in which the middles of ``number`` equal parts lie."""
    return [(2 * i + 1) * length // (2 * number) for i in range(number)]
