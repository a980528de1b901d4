"""DART, Wen et al., arXiv 2502.11494: drop tokens that duplicate others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection
from ptprune.settings import setting, whole
from ptprune.steps import Steps


@dataclass(kw_only=True)
class DART(TokenPruner):
    """DART: keep a few pivot tokens and the tokens that duplicate them least, judged by an early layer's hidden states.

    Source: Zichen Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
    More", arXiv 2502.11494. Pivots are chosen by norm. Then each pivot in turn adds the same number of tokens, those
    with the lowest cosine to it.

    Differs here: pivots have the largest L1 norm of the layer's input hidden states; theirs use the keys of the layer
    before. All 8 pivots are visual; theirs are 4 visual and 4 question tokens. Cosines use the raw hidden states;
    theirs apply the last normalisation. Exactly K tokens of each image are kept: the first pivots add one more if K
    does not divide. Pivots take turns by norm; theirs in the order of a Python set. Equal values rank by index.

    Attributes:
        pivots: number of pivot tokens; capped at the number of kept tokens.
    """

    needs = frozenset({"hidden_states"})
    pivots: int = setting(8, whole(1))

    def steps(self, image: ImageEvidence) -> Steps:
        states = image.require("hidden_states").float()
        yield from read({"hidden_states": states})
        number = self.budget(image.layout)
        size = states.abs().sum(dim=1)
        pivots = size.sort(descending=True, stable=True).indices[: min(self.pivots, number)]
        vectors = F.normalize(states, dim=-1)
        each, more = divmod(number - len(pivots), len(pivots))
        # infinity keeps chosen tokens from being chosen again
        likeness = (vectors[pivots] @ vectors.T).index_fill_(1, pivots, torch.inf)
        chosen = [pivots]
        for turn, row in enumerate(likeness.unbind()):
            chosen.append(row.sort(stable=True).indices[: each + (turn < more)])
            likeness.index_fill_(1, chosen[-1], torch.inf)
        return Selection(torch.cat(chosen).sort().values)
