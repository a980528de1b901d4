"""VisPruner, Zhang et al., arXiv 2412.01818v3: important tokens by [CLS] attention, the rest without duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection
from ptprune.settings import SHARE, setting

STEP = 8  # duplicates removed at a time, as theirs


@dataclass(kw_only=True)
class VisPruner(TokenPruner):
    """VisPruner: half the tokens by [CLS] attention, half so that no two look alike; keeps the background in sight.

    Source: Qizhe Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in
    VLMs", arXiv 2412.01818v3, its sections on important and on diverse tokens. As in their code, every tile is pruned
    by itself: what is left after the important tokens, in order of attention, is dealt out alternately into two halves,
    and those of the first half that are most like one of the second go, 8 at a time, until the number fits.

    Differs here: exactly K tokens an image, each tile the same share of its own, any number of them (theirs must be
    even); equal scores rank by index; without [CLS], the attention that all patches pay on average; features pooled
    to LLM tokens. Cosines of half of a tile's tokens with the other half are held, never those of all tokens.

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
    """``number`` of the tokens, after the most alike were removed a few at a time.

    Args:
        features: FloatTensor [num_tokens, d], of length one.
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
