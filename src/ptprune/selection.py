"""Fuses the levels' scores, ranks tokens and keeps the best. Pure functions on the tokens of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """A method's decision for one image.

    Attributes:
        kept: LongTensor, sorted and unique, indices into the image's prunable visual tokens.
        saliency: one number a region, for the report; None without a region stage, or where a region has none.
        states: [kept, D], hidden states that replace those of the kept tokens, for methods that merge dropped tokens
            into kept ones; such a method needs ``embeddings`` (with layer 0) or ``hidden_states``.
        scores: name -> FloatTensor [num_tokens], for the report.
    """

    kept: Tensor
    saliency: Sequence[float | None] | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)
    states: Tensor | None = None


Range = tuple[Tensor, Tensor]
"""The smallest and the largest of some scores, as ``torch.aminmax`` returns them."""


def minmax(scores: Tensor, extremes: Range | None = None) -> Tensor:
    """Scale finite scores [num_tokens] to 0..1. Constant scores become zeros.

    Args:
        extremes: of the scores, if they are known.
    """
    low, high = extremes or torch.aminmax(scores)
    return ((scores - low) / (high - low)).nan_to_num_(nan=0.0)  # constant scores are 0 / 0


def fuse(
    token: Tensor,
    instruction: Tensor | None,
    alpha: float,
    normalize_instruction: bool = True,
    extremes: Sequence[Range] = (),
) -> Tensor:
    """``(1 - alpha) * minmax(token) + alpha * minmax(instruction)`` over one image's tokens.

    Args:
        token, instruction: FloatTensor [num_tokens], finite. If ``instruction`` is None, the token level decides alone.
        alpha: weight of the instruction level; 0.5 in the paper.
        normalize_instruction: False adds the raw instruction score, which is too small (about 1e-3) to count much.
        extremes: of both scores, if they are known.
    """
    own, other = extremes if len(extremes) == 2 else (*extremes, None) if extremes else (None, None)
    if instruction is None:
        return minmax(token, own)
    guide = minmax(instruction, other) if normalize_instruction else instruction
    return (1 - alpha) * minmax(token, own) + alpha * guide


def keep_best(scores: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` best of scores [num_tokens], sorted; equal scores rank by index."""
    return torch.sort(scores, descending=True, stable=True).indices[:number].sort().values


def keep_top(scores: Tensor, groups: Tensor, budgets: Sequence[int], sizes: Sequence[int] | None = None) -> Tensor:
    """The best tokens of each group within the group's budget, in their original order.

    Args:
        scores: FloatTensor [num_tokens]; equal scores rank by index.
        groups: LongTensor [num_tokens], the group (region) of each token.
        budgets: tokens to keep in each group.
        sizes: tokens of each group, if they are known; they are read from the device otherwise.

    Returns:
        LongTensor [sum(budgets)], sorted.
    """
    if sizes is None:
        sizes = torch.bincount(groups, minlength=len(budgets)).tolist()
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[torch.sort(groups[order], stable=True).indices]  # by group, best first within a group
    starts = np.cumsum([0, *sizes[:-1]])
    slots = np.concatenate([np.arange(start, start + budget) for start, budget in zip(starts, budgets, strict=True)])
    return order[torch.from_numpy(slots).to(scores.device)].sort().values
