"""VisPruner, Zhang et al., arXiv 2412.01818v3: keep tokens with [CLS] attention, and others without duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection
from ptprune.settings import SHARE, setting

STEP = 8  # duplicates removed at a time, as in their code


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
    pooled to LLM tokens. Only the cosines of half of a tile's tokens with the other half are held.

    Attributes:
        important_ratio: share of the kept tokens that attention chooses.
    """

    needs = frozenset({"encoder_attention", "token_features"})
    layer: int = 0
    important_ratio: float = setting(0.5, SHARE)

    def select(self, image: ImageEvidence) -> Selection:
        attention, features = image.finite("encoder_attention"), F.normalize(image.finite("token_features"), dim=-1)
        budgets = image.layout.even_budgets(self.num_kept(image.layout.num_tokens))
        kept = []
        for tokens, budget in zip(image.layout.members(), budgets, strict=True):
            ranked = tokens[attention[tokens].sort(descending=True, stable=True).indices]
            important = int(budget * self.important_ratio)
            kept += [ranked[:important], distinct(features, ranked[important:], budget - important)]
        return Selection(torch.cat(kept).sort().values, scores={"token": attention})


def distinct(features: Tensor, tokens: Tensor, number: int) -> Tensor:
    """Remove the tokens with the closest duplicates, a few at a time, until ``number`` are left.

    Args:
        features: FloatTensor [num_tokens, d], unit vectors.
        tokens: LongTensor, in order of attention.
    """
    if not number:
        return tokens[:0]
    while len(tokens) > number:
        first, second = tokens[::2], tokens[1::2]
        gone = min(STEP, len(tokens) - number, len(first))
        likeness = (features[first] @ features[second].T).amax(dim=1)
        tokens = torch.cat([first[likeness.sort(descending=True, stable=True).indices[gone:]], second])
    return tokens
