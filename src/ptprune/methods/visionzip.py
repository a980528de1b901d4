"""VisionZip, Yang et al., arXiv 2412.04467: keep dominant tokens and merge the rest into contextual tokens."""

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
from ptprune.settings import SHARE, Rule, is_whole, setting
from ptprune.steps import Steps


@dataclass(kw_only=True)
class VisionZip(TokenPruner):
    """VisionZip: keep what [CLS] attends to and merge the rest into a few averages; every token leaves a trace.

    Source: Senqiao Yang et al., arXiv 2412.04467, dominant tokens and contextual tokens (10 of 64 are contextual). As
    in their code, every tile is compressed by itself. [CLS] attention chooses the dominant tokens. Every n-th of the
    others is a target, and each remaining token joins the target that it is most similar to.

    Differs here: exactly K tokens of each image are kept, the same share of each tile. Similarity compares the vision
    encoder's features; theirs compares the keys at its last layer but one. Merging averages the language model's
    embeddings, including the target's; theirs adds the mean of the others to the target before the projector, which
    would double an embedding's length. A merged token takes its target's position; theirs follow the dominant ones.
    [CLS] is not passed on. Equal scores rank by index. Without [CLS], the mean attention from all patches replaces it.

    Attributes:
        contextual_ratio: share of the kept tokens that are averages.
    """

    needs = frozenset({"encoder_attention", "token_features", "embeddings"})
    layer: int = setting(
        0, Rule("0 (tokens are merged before the language model)", lambda layer: is_whole(layer) and layer == 0)
    )
    contextual_ratio: float = setting(10 / 64, SHARE)

    def steps(self, image: ImageEvidence) -> Steps:
        attention, features = image.require("encoder_attention").float(), image.require("token_features").float()
        yield from read({"encoder_attention": attention, "token_features": features})
        layout, sizes = image.layout, image.layout.sizes()
        budgets = layout.even_budgets(self.budget(layout))
        contextual = [round(budget * self.contextual_ratio) for budget in budgets]
        dominant = [budget - number for budget, number in zip(budgets, contextual, strict=True)]
        region_of = layout.region_of.to(attention.device)
        kept = ranked(attention, region_of)[layout.upload(stretches(starts_of(sizes), dominant))]
        if not any(contextual):
            return Selection(kept.sort().values, scores={"token": attention})
        # the rest region by region, in its original order, the dominant tokens behind it
        rest = region_of.index_fill(0, kept, len(sizes)).sort(stable=True).indices
        left = [size - number for size, number in zip(sizes, dominant, strict=True)]
        roles = roles_of(left, contextual)
        targets, others = (rest[layout.upload(slots)] for slots in (roles.targets, roles.others))
        real = layout.upload(roles.real_targets.ravel().nonzero()[0])
        places = targets.flatten()[real]
        kept = torch.cat([kept, places]).sort().values
        if not roles.real_others.any():
            return Selection(kept, scores={"token": attention})
        means = merged(
            image.require("embeddings"),
            F.normalize(features, dim=-1),
            (targets, layout.upload(roles.real_targets)),
            (others, layout.upload(roles.real_others)),
        )
        states = image.require("embeddings").index_copy(0, places, means.flatten(0, 1)[real])
        return Selection(kept, scores={"token": attention}, states=states[kept])


@dataclass(frozen=True)
class Roles:
    """Which of the tokens that are not dominant are targets, and which join them; a row for each region.

    Attributes:
        targets, others: int arrays [regions, longest], places among all those tokens.
        real_targets, real_others: boolean, of the same shape, False on padding.
    """

    targets: np.ndarray
    others: np.ndarray
    real_targets: np.ndarray
    real_others: np.ndarray


def roles_of(left: Sequence[int], contextual: Sequence[int]) -> Roles:
    """Every n-th token is a target, and regions without targets are left alone.

    Args:
        left: tokens of each region that are not dominant.
        contextual: targets of each region.
    """
    targets = [np.arange(number) * (size // max(number, 1)) for size, number in zip(left, contextual, strict=True)]
    others = [np.setdiff1d(np.arange(size if len(t) else 0), t) for size, t in zip(left, targets, strict=True)]
    # padding is the region's own first target, so that what has overflown in another region stays there
    starts = starts_of(left).clip(max=sum(left) - 1)
    slots = [
        padded_rows([start + row for start, row in zip(starts, rows, strict=True)], starts)
        for rows in (targets, others)
    ]
    real = [
        np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None] for rows in (targets, others)
    ]
    return Roles(slots[0], slots[1], real[0], real[1])


def merged(states: Tensor, features: Tensor, targets: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> Tensor:
    """Average each target's state with those of the other tokens of its region that are most similar to it.

    Args:
        states: [num_tokens, D].
        features: FloatTensor [num_tokens, d], unit vectors.
        targets, others: LongTensor [regions, longest] and BoolTensor, False on padding.

    Returns:
        [regions, targets, D].
    """
    (target, is_target), (other, is_other) = targets, others
    likeness = (features[other] @ features[target].transpose(1, 2)).masked_fill_(~is_target[:, None], -torch.inf)
    nearest = likeness.argmax(dim=2)
    # a matrix product, because adding by index has no fixed order on GPUs
    joins = nearest[:, None] == torch.arange(target.shape[1], device=nearest.device)[:, None]
    joins = (joins & is_other[:, None]).float()
    total = states[target].float() + joins @ states[other].float()
    return (total / (1 + joins.sum(dim=2, keepdim=True))).to(states.dtype)
