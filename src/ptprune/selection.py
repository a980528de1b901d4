"""Fuses the levels' scores, ranks tokens and keeps the best. Pure functions on the tokens of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptprune.errors import Refused


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


def minmax(scores: Tensor) -> Tensor:
    """Scale scores [num_tokens] to 0..1. Constant scores become zeros."""
    low, high = scores.min(), scores.max()
    spread = high - low
    return torch.where(spread > 0, (scores - low) / spread, torch.zeros_like(scores))


def fuse(
    token: Tensor,
    instruction: Tensor | None,
    alpha: float,
    normalize_instruction: bool = True,
    known_finite: bool = False,
) -> Tensor:
    """``(1 - alpha) * minmax(token) + alpha * minmax(instruction)`` over one image's tokens.

    Args:
        token, instruction: FloatTensor [num_tokens]. If ``instruction`` is None, the token level decides alone.
        alpha: weight of the instruction level; 0.5 in the paper.
        normalize_instruction: False adds the raw instruction score, which is too small (about 1e-3) to count much.
        known_finite: True if the scores were checked before; that saves a read from their device.

    Raises:
        Refused: on scores that are not finite.
    """
    for name, scores in () if known_finite else (("token", token), ("instruction", instruction)):
        if scores is not None and not bool(torch.isfinite(scores).all()):
            raise Refused(f"the {name} scores hold NaN or infinite values: the model's activations overflowed")
    if instruction is None:
        return minmax(token)
    return (1 - alpha) * minmax(token) + alpha * (minmax(instruction) if normalize_instruction else instruction)


def keep_best(scores: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` best of scores [num_tokens], sorted; equal scores rank by index."""
    return keep_top(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device), [number])


def keep_top(scores: Tensor, groups: Tensor, budgets: Sequence[int]) -> Tensor:
    """The best tokens of each group within the group's budget, in their original order.

    Args:
        scores: FloatTensor [num_tokens]; equal scores rank by index.
        groups: LongTensor [num_tokens], the group (region) of each token.
        budgets: tokens to keep in each group.

    Returns:
        LongTensor [sum(budgets)], sorted.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[torch.sort(groups[order], stable=True).indices]  # by group, best first within a group
    sizes = torch.bincount(groups, minlength=len(budgets))
    rank = torch.arange(len(scores), device=scores.device) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    limit = torch.repeat_interleave(torch.tensor(list(budgets), device=scores.device), sizes)
    return order[rank < limit].sort().values
