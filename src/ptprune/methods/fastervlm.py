"""FasterVLM, Zhang et al., arXiv 2412.01818: rank tokens by [CLS] attention alone."""

from __future__ import annotations

from dataclasses import dataclass

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, keep_top
from ptprune.steps import Steps


@dataclass(kw_only=True)
class FasterVLM(TokenPruner):
    """FasterVLM: keep what the vision encoder's [CLS] attends to, before the language model; simple, question-blind.

    Source: Qizhe Zhang et al., arXiv 2412.01818 (versions 1 and 2: "[CLS] Attention is All You Need for Training-Free
    Visual Token Pruning"). Tokens rank by [CLS] attention, mean over heads, at the layer whose features the model uses.
    Each tile keeps the same share, as in their code.

    Differs here: exactly K tokens of each image are kept. Equal scores rank by index. If the encoder has no [CLS], the
    mean attention from all patches replaces it.
    """

    needs = frozenset({"encoder_attention"})
    layer: int = 0

    def steps(self, image: ImageEvidence) -> Steps:
        attention = image.require("encoder_attention").float()
        yield from read({"encoder_attention": attention})
        budgets = image.layout.even_budgets(self.budget(image.layout))
        kept = keep_top(attention, image.layout.region_of.to(attention.device), budgets, image.layout.sizes())
        return Selection(kept, scores={"token": attention})
