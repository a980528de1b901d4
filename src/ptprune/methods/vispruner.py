"""VisPruner, Zhang et al., arXiv 2412.01818v3: keep tokens with [CLS] attention, and others without duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, padded_rows, ranked, starts_of, stretches
from ptprune.settings import SHARE, setting
from ptprune.steps import Steps
from ptprune.upload import upload

STEP = 8  # duplicates removed at a time, as in their code
PADDING = -3.0  # below every cosine: padding is nobody's duplicate


@dataclass(kw_only=True)
class VisPruner(TokenPruner):
    """VisPruner: keep half of the tokens by [CLS] attention and half for their diversity, which preserves background.

    Source: Qizhe Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in
    VLMs", arXiv 2412.01818v3, the sections on important and on diverse tokens. As in their code, every tile is pruned
    by itself. Attention chooses the important tokens. The others, ordered by attention, are dealt alternately into two
    halves. The tokens of the first half most similar to one of the second are removed, 8 at a time, until the number
    fits.

    Differs here: exactly K tokens of each image are kept, the same share of each tile; K may be odd, theirs must be
    even. Equal scores rank by index. Without [CLS], the mean attention from all patches replaces it. Features are
    pooled to LLM tokens. All tiles are pruned at once, so the cosines of every tile's tokens with each other are held.

    Attributes:
        important_ratio: share of the kept tokens that attention chooses.
    """

    needs = frozenset({"encoder_attention", "token_features"})
    layer: int = 0
    important_ratio: float = setting(0.5, SHARE)

    def steps(self, image: ImageEvidence) -> Steps:
        attention, features = image.require("encoder_attention").float(), image.require("token_features").float()
        yield from read({"encoder_attention": attention, "token_features": features})
        layout, sizes = image.layout, image.layout.sizes()
        budgets = layout.even_budgets(self.budget(layout))
        important = [int(budget * self.important_ratio) for budget in budgets]
        wanted = [budget - number for budget, number in zip(budgets, important, strict=True)]
        left = [size - number if more else 0 for size, number, more in zip(sizes, important, wanted, strict=True)]
        starts, order = starts_of(sizes), ranked(attention, layout.region_of.to(attention.device))
        kept = [order[layout.upload(stretches(starts, important))]]
        if any(wanted):
            behind = [np.arange(start, start + number) for start, number in zip(starts + important, left, strict=True)]
            rest = order[layout.upload(padded_rows(behind, starts, max(left) + 1))]
            kept.append(distinct(F.normalize(features, dim=-1), rest, left, wanted))
        return Selection(torch.cat(kept).sort().values, scores={"token": attention})


def distinct(features: Tensor, tokens: Tensor, left: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Remove the tokens with the closest duplicates, a few at a time in all regions at once, until enough are gone.

    The same eleven operations for each round, whatever the number of regions.

    Args:
        features: FloatTensor [num_tokens, d], unit vectors.
        tokens: LongTensor [regions, longest + 1], in order of attention, then padding.
        left, wanted: how many tokens of each region are real, and how many of these stay.

    Returns:
        LongTensor [sum(wanted)].
    """
    regions, width = tokens.shape
    vectors = features[tokens]
    likeness = vectors @ vectors.transpose(1, 2)
    real = np.arange(width) < np.array(left)[:, None]
    outside = upload(~real, tokens.device)
    likeness.masked_fill_(outside[:, None], PADDING).masked_fill_(outside[:, :, None], PADDING)
    region = torch.arange(regions, device=tokens.device)[:, None, None]
    order = torch.arange(width, device=tokens.device).expand(regions, width)
    plan = rounds(left, wanted)
    moves = upload(np.concatenate([each.ravel() for each in plan]), tokens.device)
    for move in moves.split([each.size for each in plan[:-1]] + [plan[-1].size])[:-1]:
        first, second = order[:, ::2], order[:, 1::2]
        closest = likeness[region, first[:, :, None], second[:, None]].amax(dim=2)
        first = first.gather(1, closest.sort(dim=1, descending=True, stable=True).indices)
        order = torch.cat([first, second], dim=1).gather(1, move.view(regions, -1))
    return tokens.gather(1, order).flatten()[moves[len(moves) - plan[-1].size :]]


def rounds(left: Sequence[int], wanted: Sequence[int]) -> list[np.ndarray]:
    """What stays in each round of ``distinct``, which needs no scores to know.

    Returns:
        For each round an int array [regions, longest + 1]: places among the first halves, closest duplicates first, and
        the second halves behind them. The last array, flat, has the places in the last order of what is wanted.
    """
    count, goal, plan = np.array(left), np.array(wanted), []
    while (count > goal).any():
        width = count.max() + 1  # the last is always padding
        half, first, second = (width + 1) // 2, (count + 1) // 2, count // 2
        gone = np.minimum(np.minimum(STEP, count - goal), first)
        stay = [
            np.concatenate([np.arange(start, stop), np.arange(half, half + more)])
            for start, stop, more in zip(gone, first, second, strict=True)
        ]
        count = count - gone
        padding = half - 1 if width % 2 else width - 1
        plan.append(padded_rows(stay, [padding] * len(stay), count.max() + 1))
    return [*plan, stretches(np.arange(len(goal)) * (count.max() + 1), wanted)]
