"""What several methods share: ranking within a budget, the tokens of each region, even budgets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.budget import allocate
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import keep_top


def finite(image: ImageEvidence, name: str) -> Tensor:
    """The named evidence in float32.

    Raises:
        ValueError: on values that are not finite: no ranking could be trusted.
    """
    values = image.require(name).float()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds NaN or infinite values: the model's activations overflowed")
    return values


def best(scores: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` best of scores [num_tokens], sorted; equal scores rank by index."""
    return keep_top(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device), [number])


def members(image: ImageEvidence) -> list[Tensor]:
    """For each region a LongTensor of its tokens, row by row."""
    region_of = image.layout.region_of.to(image.device)
    return [(region_of == number).nonzero()[:, 0] for number in range(len(image.layout.regions))]


def even_budgets(layout: ImageLayout, total: int) -> list[int]:
    """Tokens to keep in each region, in proportion to its size, ``total`` in all."""
    sizes = [region.num_tokens for region in layout.regions]
    return allocate([1.0] * len(sizes), sizes, total)


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., d] of length one, in float32; products of them are cosines."""
    return F.normalize(vectors.float(), dim=-1)
