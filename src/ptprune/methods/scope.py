"""SCOPE, Deng et al., arXiv 2510.24214: keep salient tokens that cover what the chosen ones do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.layout import ImageLayout
from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, stretches
from ptprune.settings import number, setting
from ptprune.steps import Steps


@dataclass(kw_only=True)
class SCOPE(TokenPruner):
    """SCOPE: keep tokens with [CLS] attention that resemble many tokens which the chosen ones do not resemble.

    Source: Jinhong Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs", arXiv
    2510.24214. With cosines of the vision encoder's features and ``m_j`` a token's greatest cosine with a chosen one, 0
    at first, the next token is the one with the greatest ``a_i^alpha sum_j max(0, cos_ij - m_j)``, where a is [CLS]
    attention. As in their code, every tile is pruned by itself, the sum runs over all of its tokens, and alpha is 1.

    Differs here: exactly K tokens of each image are kept, the same share of each tile; theirs rounds down. Attention is
    a mean over heads; theirs is a sum. Features are pooled to LLM tokens. Equal gains rank by index. Without [CLS], the
    mean attention from all patches replaces it. All tiles are pruned at once, so the cosines of every tile's tokens
    with each other are held.

    Attributes:
        alpha: the power of attention; 0 covers alone.
    """

    needs = frozenset({"encoder_attention", "token_features"})
    layer: int = 0
    alpha: float = setting(1.0, number("0 or more and finite", lambda value: 0 <= value < float("inf")))

    def steps(self, image: ImageEvidence) -> Steps:
        attention, features = image.require("encoder_attention").float(), image.require("token_features").float()
        yield from read({"encoder_attention": attention, "token_features": features})
        budgets = image.layout.even_budgets(self.budget(image.layout))
        kept = covering(F.normalize(features, dim=-1), attention**self.alpha, image.layout, budgets)
        return Selection(kept, scores={"token": attention})


def covering(vectors: Tensor, weights: Tensor, layout: ImageLayout, budgets: Sequence[int]) -> Tensor:
    """Choose greedily, in all regions at once, in as many steps as the largest budget has tokens.

    Args:
        vectors: FloatTensor [num_tokens, d], unit vectors.
        weights: FloatTensor [num_tokens], not negative.
        budgets: tokens of each region.

    Returns:
        LongTensor [sum(budgets)], sorted.
    """
    slots, most = layout.slots(), max(budgets)
    rows = layout.upload(slots)
    padded = F.pad(vectors, (0, 0, 0, 1))[rows]  # padding resembles nothing
    likeness, weights = padded @ padded.transpose(1, 2), F.pad(weights, (0, 1))[rows]
    # negative on padding, which is chosen last, and -inf on what was chosen
    out = layout.upload(np.where(slots == layout.num_tokens, -1.0, 0.0)).to(weights)
    covered, gains = torch.zeros_like(weights), torch.empty_like(likeness)
    chosen = torch.empty(len(budgets), most, dtype=torch.long, device=rows.device)
    for best in chosen.split(1, dim=1):
        torch.sub(likeness, covered[:, None], out=gains).clamp_(min=0)
        best.copy_(torch.addcmul(out, gains.sum(dim=2), weights).argmax(dim=1, keepdim=True))
        row = likeness.gather(1, best[..., None].expand(-1, -1, likeness.shape[2]))[:, 0]
        torch.maximum(covered, row, out=covered)
        out.scatter_(1, best, -torch.inf)
    first = layout.upload(stretches(np.arange(len(budgets)) * most, budgets))
    return rows.gather(1, chosen).flatten()[first].sort().values
