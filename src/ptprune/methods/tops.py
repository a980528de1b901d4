"""TOPS, Wang et al., arXiv 2606.27161: relevant, diverse and covering tokens, in stages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.errors import SettingError
from ptprune.methods.stages import StagedPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, minmax
from ptprune.settings import Rule, is_whole, number, one_of, setting
from ptprune.steps import Steps

DEEP = (12 / 28, 16 / 28)  # of the depth: layers 12 and 16 of InternVL3-8B and Qwen2.5-VL-7B
NOISE = 1e-6  # terms below are rounding
NOT_NEGATIVE = number("0 or more and finite", lambda value: 0 <= value < float("inf"))


@dataclass(kw_only=True)
class TOPS(StagedPruner):
    """TOPS: keep what is relevant, unlike the chosen tokens and like many others, before and inside the model.

    Source: Tinghao Wang et al., "TOPS: First-Principles Visual Token Pruning via Constructing Token Optimal
    Preservation Sets", arXiv 2606.27161. The first token is the most relevant one. The next has the greatest
    ``r + diversity d + coverage c``: relevance r; ``d_i = 1 - m_i`` with ``m_i`` its greatest cosine with a chosen
    token; ``c_i = sum_j max(0, cos_ij - m_j)`` over the tokens that are not chosen; each scaled. The first stage is
    before the language model, with [CLS] attention as relevance and 0.5 for both weights. The others are at layers 12
    and 16 of 28, with the mean attention of the text and, for InternVL3, weights of 0.2.

    Differs here: ``keep_ratio`` is the share that the last stage leaves, exactly K tokens of each image; every stage
    keeps its ``stages``-th root. Theirs gives each model and ratio a schedule, such as 1280, 512, 281 and 77 tokens,
    and names it by a mean. All instruction tokens rate; theirs are those above a threshold, which they find hardly
    better. Kept tokens keep their position ids; theirs are renumbered after the last stage (``positions="compact"``).
    Dropped tokens leave every layer's cache. Tokens of all tiles are compared with each other, and all their cosines
    are held. Equal sums rank by index. Without [CLS], the mean attention from all patches replaces it.

    Attributes:
        stages: how many of the three stages there are, the first ones; 1 prunes before the language model alone.
        diversity, coverage: weights of the first stage.
        deep_diversity, deep_coverage: weights of the others.
        scale: "minmax" scales each term to 0..1, as their text says; "mean" divides it by its mean over the tokens that
            are not chosen, as their algorithms say.
    """

    needs = frozenset({"encoder_attention", "hidden_states", "instruction_map"})
    layer: int = 0
    stages: int = setting(3, Rule("1, 2 or 3", lambda value: is_whole(value) and 1 <= value <= 3))
    diversity: float = setting(0.5, NOT_NEGATIVE)
    coverage: float = setting(0.5, NOT_NEGATIVE)
    deep_diversity: float = setting(0.2, NOT_NEGATIVE)
    deep_coverage: float = setting(0.2, NOT_NEGATIVE)
    scale: str = setting("minmax", one_of("minmax", "mean"))

    @property
    def cuts(self) -> int:
        return self.stages

    def cut_layers(self, num_layers: int) -> tuple[int, ...]:
        left, depths = num_layers - self.layer, [0]
        if 0 < left < self.stages:
            raise SettingError(f"stages must be at most {left} where {left} layers follow, got {self.stages}")
        for later, share in enumerate(reversed(DEEP[: self.stages - 1])):
            most = left - 1 - later
            depths.insert(1, min(round(left * share), depths[1] - 1 if later else most))
        return tuple(self.layer + max(depth, stage) for stage, depth in enumerate(depths))

    def steps(self, image: ImageEvidence) -> Steps:
        states = image.require("hidden_states").float()
        name = "instruction_map" if image.stage else "encoder_attention"
        evidence = image.require(name).float()
        yield from read({"hidden_states": states, name: evidence})
        relevance, weights = evidence, (self.diversity, self.coverage)
        if image.stage:
            weights = self.deep_diversity, self.deep_coverage
            relevance = evidence.mean(dim=0) if len(evidence) else torch.zeros_like(states[:, 0])
        number = min(self.num_after(image.stage, image.layout.num_unpruned), len(states))
        kept = preserve(F.normalize(states, dim=-1), relevance, number, *weights, self.scale)
        return Selection(kept, scores={"instruction" if image.stage else "token": relevance})


def preserve(
    vectors: Tensor, relevance: Tensor, number: int, diversity: float, coverage: float, scale: str = "minmax"
) -> Tensor:
    """Choose greedily by the three terms, see ``TOPS``; as many operations for each token, and no read.

    Args:
        vectors: FloatTensor [num_tokens, d], unit vectors.
        relevance: FloatTensor [num_tokens], not negative.

    Returns:
        LongTensor [number], sorted.
    """
    likeness = (vectors @ vectors.T).clamp_(max=1)
    average = scale == "mean"
    fixed = relevance / relevance.mean().clamp(min=torch.finfo().tiny) if average else minmax(relevance)
    nearest, gains = torch.full_like(relevance, -1.0), torch.empty_like(likeness)
    chosen = torch.empty(number, dtype=torch.long, device=vectors.device)
    turns = chosen.split(1)
    turns[0].copy_(fixed.argmax(dim=0, keepdim=True))
    weights = fixed.new_tensor([[diversity], [coverage]])
    terms = fixed.new_empty(2, len(fixed))
    for left, (last, following) in enumerate(pairwise(turns), start=1):
        torch.maximum(nearest, likeness.index_select(0, last)[0], out=nearest).index_fill_(0, last, 1.0)
        torch.sub(1.0, nearest, out=terms[0])
        torch.sub(likeness, nearest, out=gains).clamp_(min=0)
        torch.sum(gains, dim=1, out=terms[1])
        # both are 0 for every chosen token, so that the smallest is 0 and the sum that of the others
        size = terms.sum(dim=1, keepdim=True) / (len(fixed) - left) if average else terms.amax(dim=1, keepdim=True)
        fixed.index_fill_(0, last, -torch.inf)
        total = (terms * (weights / size.clamp(min=NOISE))).sum(dim=0).add_(fixed)
        following.copy_(total.argmax(dim=0, keepdim=True))
    return chosen.sort().values
