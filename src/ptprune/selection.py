"""Fuses the levels' scores, ranks tokens and keeps the best. Pure functions on the tokens of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ptprune.errors import Refused
from ptprune.upload import upload


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


def minmax(scores: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Scale finite scores [num_tokens, ...] to 0..1. Constant scores become zeros.

    Args:
        low, high: their extremes [...], if they are known.
    """
    if low is None or high is None:
        low, high = torch.aminmax(scores, dim=0)
    return ((scores - low) / (high - low)).nan_to_num_(nan=0.0)  # constant scores are 0 / 0


def fuse(token: Tensor, instruction: Tensor | None, alpha: float, normalize_instruction: bool = True) -> Tensor:
    """``(1 - alpha) * minmax(token) + alpha * minmax(instruction)`` over one image's tokens.

    Args:
        token, instruction: FloatTensor [num_tokens]. If ``instruction`` is None, the token level decides alone.
        alpha: weight of the instruction level; 0.5 in the paper.
        normalize_instruction: False adds the raw instruction score, which is too small (about 1e-3) to count much.

    Raises:
        Refused: on scores that are not finite; they are read from their device for that.
    """
    levels = [token] if instruction is None else [token, instruction]
    weights = (1.0,) if instruction is None else (1 - alpha, alpha)
    fused, low, high = fuse_levels(*levels, weights=weights, scaled=2 if normalize_instruction else 1)
    if not bool(torch.isfinite(torch.cat([low, high])).all()):
        raise Refused("the scores hold NaN or infinite values: the model's activations overflowed")
    return fused


def fuse_levels(*levels: Tensor, weights: Sequence[float], scaled: int) -> tuple[Tensor, Tensor, Tensor]:
    """``sum_l weights[l] * minmax(levels[l])`` over each image's tokens, in few operations and without a read.

    Args:
        levels: FloatTensors [..., num_tokens], the scores of each level. Whoever reads the extremes has to check that
            they are finite.
        weights: one a level.
        scaled: so many of the levels, the first ones, are scaled to 0..1; the others count as they are.

    Returns:
        FloatTensor [..., num_tokens], and FloatTensors [..., levels], the smallest and the largest score of each level.
    """
    scores = torch.stack(levels, dim=-1)
    low, high = torch.aminmax(scores, dim=-2, keepdim=True)
    normal = minmax(scores, low, high)
    if scaled < len(levels):
        normal = torch.cat([normal[..., :scaled], scores[..., scaled:]], dim=-1)
    return (normal * _on(scores.device, scores.dtype, *weights)).sum(dim=-1), low.squeeze(-2), high.squeeze(-2)


@lru_cache(maxsize=64)
def _on(device: torch.device, dtype: torch.dtype, *numbers: float) -> Tensor:
    """A few numbers as a tensor, made once for each device."""
    return torch.tensor(numbers, dtype=dtype, device=device)


def keep_best(scores: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` best of scores [..., num_tokens], sorted; equal scores rank by index."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :number].sort(dim=-1).values


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
    slots = upload(stretches(starts_of(sizes), budgets), scores.device)
    return ranked(scores, groups)[slots].sort().values


def ranked(scores: Tensor, groups: Tensor) -> Tensor:
    """LongTensor [num_tokens]: the tokens by group, best first within a group; equal scores rank by index."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[torch.sort(groups[order], stable=True).indices]


def starts_of(sizes: Sequence[int]) -> np.ndarray:
    """Where groups of these sizes begin, one behind the other."""
    return np.cumsum([0, *sizes[:-1]])


def stretches(starts: Sequence[int] | np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The whole numbers from each start on, so many of them, behind one another."""
    return np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])


def padded_rows(
    rows: Sequence[np.ndarray], padding: Sequence[int] | np.ndarray, width: int | None = None
) -> np.ndarray:
    """Rows of different lengths as one array [rows, width], each with its own padding.

    Args:
        width: the longest row's by default.
    """
    padded = np.empty((len(rows), max(map(len, rows)) if width is None else width), np.int64)
    padded[:] = np.asarray(padding)[:, None]
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
