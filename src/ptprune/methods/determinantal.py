"""Greedy determinantal choice: tokens that weigh much and span much together, for PTP's coverage and for CDPruner.

With unit vectors ``v``, weights ``w`` and ``L_ij = w_i (v_i . v_j + RIDGE [i = j]) w_j``, the set S grows by the token
that multiplies ``det L_S`` most. Its factor, here called gain, is ``w_i^2`` times what the chosen vectors leave of
``v_i``: the squared length of the part that they do not span, and the ridge.

Source: Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation
Diversity", arXiv 1709.05135: one row of a Cholesky factor for each chosen token. Ours are the ridge, without which
nothing distinguishes the tokens that are left once the chosen vectors span every dimension; the blocks of several
tokens; and the groups of tokens side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.layout import ImageLayout
from ptprune.selection import stretches

RIDGE = 0.01
STEPS = 48
"""As many tokens of a group are chosen one at a time. A larger number of tokens takes as many steps."""
AHEAD = 2  # tokens that a step looks at for each token that it takes
NOISE = 1e-6  # what is left of a vector in float32 when nothing is


def choose_diverse(vectors: Tensor, weights: Tensor, number: int, given: Tensor | None = None) -> Tensor:
    """Choose ``number`` of an image's tokens.

    Args:
        vectors: FloatTensor [num_tokens, d], unit vectors.
        weights: FloatTensor [num_tokens], not negative.
        given: LongTensor [m], tokens that are chosen first; the first ``number`` of them count.

    Returns:
        LongTensor [number], sorted.
    """
    first = None if given is None else given[None, :number]
    return grow(vectors[None], weights[None], number, first)[0].sort().values


def choose_diverse_by_region(vectors: Tensor, weights: Tensor, layout: ImageLayout, budgets: Sequence[int]) -> Tensor:
    """Choose within each region's budget as if there were no other region, all regions at once.

    Args:
        vectors, weights: as in ``choose_diverse``.
        budgets: tokens of each region, not more than it has.

    Returns:
        LongTensor [sum(budgets)], sorted.
    """
    slots = layout.upload(layout.slots())
    # padding has no weight and comes after every token of its region, which ties favour by index
    places = grow(F.pad(vectors, (0, 0, 0, 1))[slots], F.pad(weights, (0, 1))[slots], max(budgets))
    first = layout.upload(stretches(np.arange(len(budgets)) * max(budgets), budgets))
    return slots.gather(1, places).flatten()[first].sort().values


def grow(vectors: Tensor, weights: Tensor, number: int, first: Tensor | None = None, steps: int = STEPS) -> Tensor:
    """Grow a set in each group of tokens, all groups at once. Nothing is read from the device.

    Up to ``steps`` tokens, each is the one of the greatest gain; equal gains rank by index. If there are more, a step
    takes several. It looks at the ``AHEAD`` times as many of the greatest gain and multiplies the gain of each with
    ``1 - r^2``, where r is the strongest correlation of what is left of its vector with what is left of one of greater
    gain. (With only that one chosen, this would be its gain.) So the first of each step is the greedy choice, and a
    duplicate of one of greater gain counts for almost nothing. Once as many tokens are chosen as vectors have
    dimensions, nothing is left to span: the others are taken by their gains at once.

    Args:
        vectors: FloatTensor [groups, n, d], unit vectors; zeros for padding.
        weights: FloatTensor [groups, n], not negative; zeros for padding.
        number: tokens that each group chooses, at most n.
        first: LongTensor [groups, m], m at most ``number``, tokens that are chosen first.

    Returns:
        LongTensor [groups, number], in the order of choice.
    """
    groups, size, dimensions = vectors.shape
    importance = weights.square()
    # what the chosen vectors leave of each: at first exactly the same of all, so that equal weights rank by index
    rest = (vectors.square().sum(dim=2) > 0.5).to(weights) + RIDGE
    out = torch.zeros_like(rest)  # -inf for what was chosen
    given = 0 if first is None else first.shape[1]
    spanning = max(min(number, dimensions), given)  # tokens that are chosen in steps
    factor = vectors.new_empty(groups, spanning, size)
    chosen = torch.empty(groups, number, dtype=torch.long, device=vectors.device)
    start, at_a_time = 0, -(-spanning // steps)
    while start < number:
        gains = torch.addcmul(out, importance, rest)
        count = min(at_a_time, spanning - start)
        if first is not None and start < given:
            picks = first
        elif start >= spanning:
            picks = gains.sort(dim=1, descending=True, stable=True).indices[:, : number - start]
        elif count > 1:
            picks = _several(vectors, factor[:, :start], gains, rest, count)
        else:
            picks = gains.argmax(dim=1, keepdim=True)
        stop = start + picks.shape[1]
        chosen[:, start:stop] = picks
        out.scatter_(1, picks, -torch.inf)
        if stop < number:
            rows = _left(vectors, factor[:, :start], picks)
            rows.scatter_add_(2, picks[..., None], rows.new_full((), RIDGE).expand(*picks.shape, 1))
            inner = torch.linalg.cholesky_ex(_columns(rows, picks)).L
            factor[:, start:stop] = torch.linalg.solve_triangular(inner, rows, upper=False)
            rest -= factor[:, start:stop].square().sum(dim=1)
        start = stop
    return chosen


def _left(vectors: Tensor, factor: Tensor, picks: Tensor) -> Tensor:
    """Products of what is left of each pick with what is left of each token, [groups, picks, n], without the ridge."""
    picked = vectors.gather(1, picks[..., None].expand(-1, -1, vectors.shape[2]))
    rows = picked @ vectors.transpose(1, 2)
    return torch.baddbmm(rows, _columns(factor, picks).transpose(1, 2), factor, alpha=-1) if factor.shape[1] else rows


def _columns(matrix: Tensor, picks: Tensor) -> Tensor:
    """The picks' columns of a matrix [groups, rows, n]: [groups, rows, picks]."""
    return matrix.gather(2, picks[:, None].expand(-1, matrix.shape[1], -1))


def _several(vectors: Tensor, factor: Tensor, gains: Tensor, rest: Tensor, count: int) -> Tensor:
    """A step's tokens, see ``grow``: LongTensor [groups, count]."""
    ahead = gains.sort(dim=1, descending=True, stable=True).indices[:, : AHEAD * count]
    picked = vectors.gather(1, ahead[..., None].expand(-1, -1, vectors.shape[2]))
    before = _columns(factor, ahead)
    product = torch.baddbmm(picked @ picked.transpose(1, 2), before.transpose(1, 2), before, alpha=-1)
    lengths = rest.gather(1, ahead).clamp(min=NOISE)
    likeness = product.square() / (lengths[:, :, None] * lengths[:, None])
    # of a pair, the one of smaller gain: rows are its better ones
    doubled = likeness.triu(diagonal=1).amax(dim=1).clamp(max=1 - NOISE)
    better = (gains.gather(1, ahead) * (1 - doubled)).sort(dim=1, descending=True, stable=True).indices
    return ahead.gather(1, better[:, :count])
