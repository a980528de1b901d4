"""SparseVLM, Zhang et al., arXiv 2410.04417: the question's visual words rate the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection, keep_best


@dataclass(kw_only=True)
class SparseVLM(TokenPruner):
    """SparseVLM: keep what those words of the question attend to that have to do with the image; for wordy questions.

    Source: Yuan Zhang et al., arXiv 2410.04417, section 3.2 and the rating that follows it: raters are the instruction
    tokens whose relevance, softmax over them of the products of visual and text embeddings, mean over the visual
    tokens, is above average; a token's score is the mean of the raters' attention rows, themselves means over heads.

    Differs here: one stage before ``layer``, theirs prunes at layers 2, 6 and 15; exactly K tokens, theirs a table or
    the rank of the attention matrix; dropped tokens are gone, theirs clusters and recycles some. Relevance counts the
    visual tokens of one image at a time, without newlines. Where no instruction token is above average, all are raters;
    equal scores rank by index.
    """

    needs = frozenset({"embeddings", "instruction_embeddings", "instruction_map"})

    def select(self, image: ImageEvidence) -> Selection:
        visual, text = image.finite("embeddings"), image.finite("instruction_embeddings")
        relevance = torch.softmax(visual @ text.T, dim=1).mean(dim=0)
        raters = relevance > relevance.mean()
        if not bool(raters.any()):
            raters = torch.ones_like(raters)
        attention = image.finite("instruction_map")
        scores = attention[raters.to(attention.device)].sum(dim=0) / max(1, int(raters.sum()))
        return Selection(keep_best(scores, self.num_kept(len(visual))), scores={"instruction": scores})
