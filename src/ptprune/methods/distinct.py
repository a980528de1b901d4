"""Tokens that weigh much and are like none that weighs more: PTP's choice without a greedy loop.

With unit vectors ``v`` and weights ``w``, a token counts ``w_i^2 (1 - r_i^2)``, where ``r_i`` is its strongest cosine
with a token of greater weight. A near-duplicate of a token that weighs more counts for almost nothing; the token that
weighs most keeps its weight. This is one step of ``determinantal`` with all tokens in it [ours]: the number of device
operations does not grow with the budget.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.layout import ImageLayout

BLOCK = 2**24
"""Cosines that are held at a time, 64 MiB of them."""


def distinct(vectors: Tensor, weights: Tensor) -> Tensor:
    """What each token counts among those of its group.

    Args:
        vectors: FloatTensor [..., n, d], unit vectors; zeros for padding.
        weights: FloatTensor [..., n], not negative; of equal ones the first is the greater.

    Returns:
        FloatTensor [..., n].
    """
    weights, order = weights.sort(dim=-1, descending=True, stable=True)
    vectors = vectors.gather(-2, order[..., None].expand_as(vectors))
    likeness, start = [], 0
    for rows in vectors.split(max(1, BLOCK // weights.numel()), dim=-2):
        better = vectors[..., : start + rows.shape[-2], :].mT
        likeness.append((rows @ better).square_().tril_(diagonal=start - 1).amax(dim=-1))
        start += rows.shape[-2]
    strongest = likeness[0] if len(likeness) == 1 else torch.cat(likeness, dim=-1)
    squares = weights.square()
    return torch.empty_like(weights).scatter_(-1, order, torch.addcmul(squares, squares, strongest, value=-1))


def distinct_by_region(vectors: Tensor, weights: Tensor, layout: ImageLayout) -> Tensor:
    """The same within each region, all regions at once.

    Args:
        vectors: FloatTensor [num_tokens, d], unit vectors.
        weights: FloatTensor [num_tokens], not negative.

    Returns:
        FloatTensor [num_tokens].
    """
    slots = layout.upload(layout.slots())
    counts = distinct(F.pad(vectors, (0, 0, 0, 1))[slots], F.pad(weights, (0, 1))[slots])
    # padding, of no weight, lands in the place after the last token
    return counts.new_empty(layout.num_tokens + 1).scatter_(0, slots.flatten(), counts.flatten())[:-1]
