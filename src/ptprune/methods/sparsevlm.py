"""SparseVLM, Zhang et al., arXiv 2410.04417: the question's visual words rank the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, keep_best
from ptprune.steps import Steps


@dataclass(kw_only=True)
class SparseVLM(TokenPruner):
    """SparseVLM: keep what the question's image-related words attend to; for wordy questions.

    Source: Yuan Zhang et al., arXiv 2410.04417, section 3.2 and the rating that follows it. A token's score is the mean
    attention that the raters pay, also a mean over heads. Raters are the instruction tokens of above-average relevance:
    the softmax over instruction tokens of the products of visual and text embeddings, mean over visual tokens.

    Differs here: tokens are dropped once, before ``layer``; theirs at layers 2, 6 and 15. Exactly K tokens are kept;
    their number comes from a table or the rank of the attention matrix. Dropped tokens are lost; theirs are partly
    clustered and recycled. Relevance counts the visual tokens of one image at a time, without newlines. If no
    instruction token is above average, all are raters. Equal scores rank by index.
    """

    needs = frozenset({"embeddings", "instruction_embeddings", "instruction_map"})

    def steps(self, image: ImageEvidence) -> Steps:
        names = ("embeddings", "instruction_embeddings", "instruction_map")
        visual, text, attention = found = [image.require(name).float() for name in names]
        yield from read(dict(zip(names, found, strict=True)))
        relevance = torch.softmax(visual @ text.T, dim=1).mean(dim=0)
        raters = relevance > relevance.mean()
        raters = raters | ~raters.any()
        # the raters' rows first, the others as zeros: how many there are stays on the device
        order = torch.sort(raters, descending=True, stable=True).indices
        number = raters.sum()
        paid = attention[order].mul_((torch.arange(len(order), device=order.device) < number)[:, None])
        scores = paid.sum(dim=0) / number.clamp(min=1)
        return Selection(keep_best(scores, self.budget(image.layout)), scores={"instruction": scores})
