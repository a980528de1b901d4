"""DivPrune, Alvar et al., arXiv 2503.02175: keep the tokens that are furthest apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection

ROWS_AT_A_TIME = 256  # of the cosine matrix of all tokens, which is too large to hold whole


@dataclass(kw_only=True)
class DivPrune(TokenPruner):
    """DivPrune: keep tokens that differ as much as possible from each other; needs no attention and no question.

    Source: Saeed Ranjbar Alvar et al., arXiv 2503.02175, Algorithm 1 for the max-min diversity problem on cosine
    distances of the embeddings. It starts with the token that is furthest from its nearest neighbour and repeatedly
    adds the token that is furthest from the chosen ones.

    Differs here: the distance matrix is never held whole: the first token takes 256 rows of it at a time, later tokens
    one row, so memory is 256 x tokens. Exactly K different tokens are kept; theirs may choose one of two duplicates
    again. Equal distances rank by index. Structural tokens such as newlines always stay and do not take part.
    """

    needs = frozenset({"embeddings"})
    layer: int = 0

    def select(self, image: ImageEvidence) -> Selection:
        vectors = F.normalize(image.finite("embeddings"), dim=-1)
        chosen, number = [_loneliest(vectors)], self.num_kept(len(vectors))
        # similarity of each token to the nearest chosen one; infinity keeps chosen tokens from being chosen again
        nearest = torch.full((len(vectors),), -2.0, device=vectors.device)
        while len(chosen) < number:
            last = chosen[-1]
            nearest = torch.maximum(nearest, (vectors @ vectors[last].T)[:, 0]).index_fill_(0, last, torch.inf)
            chosen.append(nearest.argmin(dim=0, keepdim=True))
        return Selection(torch.cat(chosen).sort().values)


def _loneliest(vectors: Tensor) -> Tensor:
    """Index of the unit vector, of [num_tokens, d], that is furthest from its nearest neighbour: LongTensor [1]."""
    most = []
    for start in range(0, len(vectors), ROWS_AT_A_TIME):
        rows = vectors[start : start + ROWS_AT_A_TIME] @ vectors.T
        rows.diagonal(offset=start).fill_(-torch.inf)
        most.append(rows.amax(dim=1))
    return torch.cat(most).argmin(dim=0, keepdim=True)
