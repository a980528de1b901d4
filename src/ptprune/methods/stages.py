"""What methods have in common that drop tokens before several layers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ptprune.pruner import TokenPruner


@dataclass(kw_only=True)
class StagedPruner(TokenPruner):
    """Drops tokens in stages. ``keep_ratio`` is the share that the last cut leaves; every cut leaves the same share of
    the tokens before it, as near as whole numbers allow."""

    @property
    @abstractmethod
    def cuts(self) -> int:
        """How many layers there are before which tokens are dropped."""

    def num_after(self, cut: int, num_tokens: int) -> int:
        """How many of an image's ``num_tokens`` tokens are left after cut number ``cut``, counting from 0."""
        kept = self.num_kept(num_tokens)
        if cut == self.cuts - 1:
            return kept
        return round(num_tokens * (kept / num_tokens) ** ((cut + 1) / self.cuts))
