"""FastV, Chen et al., arXiv 2403.06764: rank tokens by the last token's attention at an early layer."""

from __future__ import annotations

from dataclasses import dataclass

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, keep_best
from ptprune.steps import Steps


@dataclass(kw_only=True)
class FastV(TokenPruner):
    """FastV: keep what the prompt's last token attends to at an early layer; the classic that needs no vision encoder.

    Source: Liang Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764, the section on FastV.
    With filtering layer k, tokens rank by the attention that the last token pays at layer k - 1, mean over heads.

    Differs here: exactly K tokens of each image are kept; theirs count in one fixed block of the prompt. Equal scores
    rank by index. Batches and several images work. Dropped tokens leave every layer's cache. Kept tokens keep their
    position ids, as in their in-place variant. The last token is the last text token of the prompt. ``layer=0`` ranks
    by the first layer's attention; theirs draws at random.
    """

    needs = frozenset({"last_attention"})

    def steps(self, image: ImageEvidence) -> Steps:
        attention = image.require("last_attention").float()
        yield from read({"last_attention": attention})
        return Selection(keep_best(attention, self.budget(image.layout)), scores={"instruction": attention})
