"""PyramidDrop, Xing et al., arXiv 2410.17247: drop tokens in stages by the last token's attention."""

from __future__ import annotations

from dataclasses import dataclass

from ptprune.errors import SettingError
from ptprune.methods.stages import StagedPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.selection import Selection, keep_best
from ptprune.settings import setting, whole
from ptprune.steps import Steps


@dataclass(kw_only=True)
class PyramidDrop(StagedPruner):
    """PyramidDrop: drop tokens in stages, few in early layers and more in deep ones, by the last token's attention.

    Source: Long Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
    Reduction", arXiv 2410.17247. The language model is cut into stages of equal depth. At the end of each stage, tokens
    rank by the attention that the instruction's last token pays, mean over heads, and the same share of them stays.

    Differs here: ``keep_ratio`` is the share that the last stage leaves, exactly K tokens of each image; every stage
    keeps its (stages - 1)-th root. Dropped tokens leave every layer's cache; theirs stay in the caches of earlier
    stages. The first stage ends before ``layer``, 2 as in other methods here; theirs ends at a quarter of the depth (8
    of 32: set ``layer=8``). Attention is that of a stage's last layer; theirs uses the next layer's queries and keys.

    Attributes:
        stages: number of stages. The first one is unpruned, the others share the layers from ``layer`` on.
    """

    needs = frozenset({"last_attention"})
    layer: int = setting(2, whole(1, because="tokens rank by the attention before"))
    stages: int = setting(4, whole(2))

    @property
    def cuts(self) -> int:
        return self.stages - 1

    def cut_layers(self, num_layers: int) -> tuple[int, ...]:
        left, cuts = num_layers - self.layer, self.cuts
        if 0 < left < cuts:
            raise SettingError(f"stages must be at most {left + 1} where {left} layers follow, got {self.stages}")
        return tuple(self.layer + left * cut // cuts for cut in range(cuts))

    def steps(self, image: ImageEvidence) -> Steps:
        attention = image.require("last_attention").float()
        yield from read({"last_attention": attention})
        number = self.num_after(image.stage, image.layout.num_unpruned)
        return Selection(keep_best(attention, min(number, len(attention))), scores={"instruction": attention})
