"""DivPrune, Alvar et al., arXiv 2503.02175: the tokens that are furthest apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection

ROWS_AT_A_TIME = 256  # of the cosines of all tokens with all tokens, which are never held whole


@dataclass(kw_only=True)
class DivPrune(TokenPruner):
    """DivPrune: keep tokens that are as different from each other as can be; needs no attention and no question.

    Source: Saeed Ranjbar Alvar et al., arXiv 2503.02175, its Algorithm 1 for the max-min diversity problem on cosine
    distances of the embeddings: first the token that is furthest from its nearest neighbour, then again and again the
    one that is furthest from what was chosen.

    Differs here: the matrix of all distances is never held, only 256 rows of it to find the first token and one row at
    a time after that, memory 256 x tokens; exactly K different tokens, where theirs may choose one of two duplicates
    again; equal distances rank by index; structural tokens such as newlines always stay and do not take part.
    """

    needs = frozenset({"embeddings"})
    layer: int = 0

    def select(self, image: ImageEvidence) -> Selection:
        vectors = F.normalize(image.finite("embeddings"), dim=-1)
        return Selection(furthest_apart(vectors, self.num_kept(len(vectors))))


def furthest_apart(vectors: Tensor, number: int) -> Tensor:
    """``number`` of the vectors [num_tokens, d] of length one, chosen greedily: LongTensor, sorted."""
    chosen = [_loneliest(vectors)]
    # how similar each token is to the nearest one chosen; those chosen are out of reach
    nearest = torch.full((len(vectors),), -2.0, device=vectors.device)
    while len(chosen) < number:
        last = chosen[-1]
        nearest = torch.maximum(nearest, (vectors @ vectors[last].T)[:, 0]).index_fill_(0, last, torch.inf)
        chosen.append(nearest.argmin(dim=0, keepdim=True))
    return torch.cat(chosen).sort().values


def _loneliest(vectors: Tensor) -> Tensor:
    """The vector that is least similar to the one most similar to it: LongTensor [1]."""
    most = []
    for start in range(0, len(vectors), ROWS_AT_A_TIME):
        rows = vectors[start : start + ROWS_AT_A_TIME] @ vectors.T
        rows.diagonal(offset=start).fill_(-torch.inf)
        most.append(rows.amax(dim=1))
    return torch.cat(most).argmin(dim=0, keepdim=True)
