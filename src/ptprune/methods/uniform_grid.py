"""Uniform sampling of every region's grid: the baseline for every method that claims to know which tokens matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


@dataclass(kw_only=True)
class UniformGrid(TokenPruner):
    """Uniform grid: keep evenly spaced tokens of every tile, whatever they show; the baseline that sees everywhere.

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
