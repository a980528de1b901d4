"""Random pruning: the baseline that critics ask for first (UniPruneBench)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection
from ptprune.settings import Rule, is_whole, setting


@dataclass(kw_only=True)
class RandomPruning(TokenPruner):
    """Random: keep a random share of each image's tokens; the same seed and number of tokens give the same choice.

    Attributes:
        seed: of the generator. Every image starts from it again.
    """

    seed: int = setting(
        0, Rule("a whole number of 64 bits", lambda value: is_whole(value) and -(2**63) <= value < 2**64)
    )

    def select(self, image: ImageEvidence) -> Selection:
        number = image.layout.num_tokens
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.randperm(number, generator=generator)[: self.budget(image.layout)].sort().values
        return Selection(kept.to(image.device))
