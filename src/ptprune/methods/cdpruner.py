"""CDPruner, Zhang et al., arXiv 2506.10967: keep tokens that are relevant and differ, by a determinantal process."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from ptprune.methods.determinantal import choose_diverse_by_region
from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, minmax
from ptprune.steps import Steps


@dataclass(kw_only=True)
class CDPruner(TokenPruner):
    """CDPruner: keep the tokens whose embeddings differ most, given how relevant each is to the question.

    Source: Qizhe Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
    MLLMs", arXiv 2506.10967. Relevance is the mean cosine of a token with the instruction's tokens, scaled to 0..1. The
    kernel of the determinantal process is ``relevance_i cos_ij relevance_j`` over the projected tokens, and tokens are
    chosen greedily. As in their code, every tile is pruned by itself, and relevance is scaled over the picture.

    Differs here: relevance compares the language model's embeddings of both; theirs compares CLIP's, which models of
    today lack, and their code turns its sign, because CLIP's patches are least similar to what they show. A small ridge
    decides once the chosen tokens span every dimension, and large numbers are chosen several at a time, see
    ``determinantal``. Exactly K tokens of each image are kept, the same share of each tile. Equal gains rank by index.
    If there is no instruction, all tokens are equally relevant.
    """

    needs = frozenset({"embeddings", "instruction_embeddings"})
    layer: int = 0

    def steps(self, image: ImageEvidence) -> Steps:
        names = ("embeddings", "instruction_embeddings")
        visual, text = found = [image.require(name).float() for name in names]
        yield from read(dict(zip(names, found, strict=True)))
        vectors = F.normalize(visual, dim=-1)
        relevance = vectors.new_ones(len(vectors))
        if len(text):
            relevance = minmax(vectors @ F.normalize(text, dim=-1).mean(dim=0))
        budgets = image.layout.even_budgets(self.budget(image.layout))
        kept = choose_diverse_by_region(vectors, relevance, image.layout, budgets)
        return Selection(kept, scores={"instruction": relevance})
