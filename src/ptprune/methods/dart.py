"""DART, Wen et al., arXiv 2502.11494: duplication matters more than importance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection
from ptprune.settings import setting, whole


@dataclass(kw_only=True)
class DART(TokenPruner):
    """DART: keep a few pivot tokens and those that duplicate them least, by hidden states of an early layer.

    Source: Zichen Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
    More", arXiv 2502.11494, its pivots by norm and its retained tokens by cosine: each pivot in turn adds the same
    number of tokens that are least similar to it.

    Differs here: pivots have the largest L1 norm of the hidden state that the layer takes, theirs of the key at the
    layer before; all 8 are visual tokens, theirs 4 visual and 4 of the question; cosines of that hidden state as it
    is, theirs after the model's last normalisation. Exactly K tokens an image: the first pivots add one more where the
    number does not divide. Pivots take turns by norm, theirs in the order of a Python set; equal values rank by index.

    Attributes:
        pivots: number of pivot tokens, at most the number kept.
    """

    needs = frozenset({"hidden_states"})
    pivots: int = setting(8, whole(1))

    def select(self, image: ImageEvidence) -> Selection:
        states = image.finite("hidden_states")
        number = self.num_kept(len(states))
        size = states.abs().sum(dim=1)
        pivots = size.sort(descending=True, stable=True).indices[: min(self.pivots, number)]
        vectors = F.normalize(states, dim=-1)
        each, more = divmod(number - len(pivots), len(pivots))
        left = torch.ones_like(size, dtype=torch.bool)
        left[pivots] = False
        for turn, likeness in enumerate(vectors[pivots] @ vectors.T):
            candidates = left.nonzero()[:, 0]
            order = likeness[candidates].sort(stable=True).indices
            left[candidates[order[: each + (turn < more)]]] = False
        return Selection((~left).nonzero()[:, 0])
