"""DivPrune, Alvar et al., arXiv 2503.02175: keep the tokens that are furthest apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection
from ptprune.steps import Steps

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

    def steps(self, image: ImageEvidence) -> Steps:
        embeddings = image.require("embeddings").float()
        yield from read({"embeddings": embeddings})
        return Selection(_spread(F.normalize(embeddings, dim=-1), self.budget(image.layout)).sort().values)


def _spread(vectors: Tensor, number: int) -> Tensor:
    """Indices of ``number`` of the unit vectors [num_tokens, d] in the order of choice.

    Five operations a choice, into the same memory, because a GPU launches each of them ``number`` times.
    """
    chosen = torch.empty(number, dtype=torch.long, device=vectors.device)
    turns = chosen.split(1)
    turns[0].copy_(_loneliest(vectors))
    vector, likeness = vectors.new_empty(1, vectors.shape[1]), vectors.new_empty(len(vectors), 1)
    column, row = vector.T, likeness[:, 0]
    # similarity of each token to the nearest chosen one; infinity keeps chosen tokens from being chosen again
    nearest = torch.full_like(row, -2.0)
    for last, following in pairwise(turns):
        torch.index_select(vectors, 0, last, out=vector)
        torch.mm(vectors, column, out=likeness)
        torch.maximum(nearest, row, out=nearest).index_fill_(0, last, torch.inf)
        torch.argmin(nearest, dim=0, keepdim=True, out=following)
    return chosen


def _loneliest(vectors: Tensor) -> Tensor:
    """Index of the unit vector, of [num_tokens, d], that is furthest from its nearest neighbour: LongTensor [1]."""
    most = []
    for start in range(0, len(vectors), ROWS_AT_A_TIME):
        rows = vectors[start : start + ROWS_AT_A_TIME] @ vectors.T
        rows.diagonal(offset=start).fill_(-torch.inf)
        most.append(rows.amax(dim=1))
    return torch.cat(most).argmin(dim=0, keepdim=True)
