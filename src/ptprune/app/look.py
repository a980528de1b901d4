"""A picture and a question as a model has encoded them: tokens are chosen from this again, without encoding again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np

from ptprune.conventions import MASK
from ptprune.methods import PaperTokenPruning, PyramidTokenPruning
from ptprune.pruner import TokenPruner
from ptprune.report import PruningReport, write_report
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection

CHOOSING = frozenset(
    {
        *("keep_ratio", "keep_tokens", "coverage", "coverage_bounds", "region", "token", "instruction", "alpha"),
        *("temperature", "thumbnail", "normalize_instruction", "ranking", "choose", "power", "likeness", "floor"),
        *("positions", "first_ratio", "second_layer"),
    }
)
"""Settings that change what is chosen, and nothing of what a first cut chooses from."""
ENCODING = frozenset({"layer", "window", "tile_batch"})
"""Settings that change what it is chosen from, and that depend on no other."""
TILES = frozenset({"tiles", "tile_threshold", "tile_score", "left_out"})
"""Such settings too, where tiles that are left out have tokens to choose from: ``left_out="background"``."""


@dataclass(frozen=True, eq=False)
class Look:
    """One prefill of one picture.

    Attributes:
        pruner: with what settings it was made.
        evidence: what the method chose from: at one cut, or at the two of PTP; nothing where another method chose in
            stages, or everything was kept without looking.
        valid: bool array [1, prompt length], the columns that are not padding.
    """

    pruner: TokenPruner
    evidence: Sequence[ImageEvidence]
    valid: np.ndarray

    @classmethod
    def of(cls, pruner: TokenPruner, seen: list[ImageEvidence], inputs: Any) -> Look:
        """What ``remembering`` collected in a prefill.

        Args:
            inputs: of that prefill, one prompt with one picture.
        """
        known = len(seen) == 1 or isinstance(pruner, PyramidTokenPruning)
        return cls(pruner, seen if known else (), inputs[MASK].bool().cpu().numpy())

    def serves(self, pruner: TokenPruner) -> bool:
        """Whether these settings would have seen the same evidence, so that they can choose from it."""
        if not self.evidence or type(pruner) is not type(self.pruner):
            return False
        # what the second of two cuts chooses from is what the first one left, which the ratio does not change
        if isinstance(pruner, PyramidTokenPruning) and pruner.cuts_twice:
            assert isinstance(self.pruner, PyramidTokenPruning)
            if not self.pruner.cuts_twice:
                return False
            if len(self.evidence) > 1 and replace(pruner, keep_ratio=self.pruner.keep_ratio) != self.pruner:
                return False
        encoding = ENCODING | TILES if pruner.left_out == "background" else ENCODING
        for each in fields(pruner):
            value = getattr(pruner, each.name)
            if each.name in encoding and value != getattr(self.pruner, each.name):
                return False
            # a setting that is not known here may mean anything, unless it is as it always is
            if each.name not in CHOOSING | encoding and not value == getattr(self.pruner, each.name) == each.default:
                return False
        return all(getattr(self.evidence[0], need) is not None for need in pruner.needs)

    def choose(self, pruner: TokenPruner) -> PruningReport:
        """What the pruner keeps: the report that a pass with these settings would write.

        Raises:
            PtpruneError: where the method refuses the image.
        """
        first, *second = self.evidence
        if second and isinstance(pruner, PyramidTokenPruning) and pruner.cuts_twice:
            [last] = second
            before = last.earlier
            assert before is not None
            kept = before.kept[pruner.checked_select(last).kept]
            selection, earlier = Selection(kept, before.saliency, before.scores), [before.kept]
        else:
            selection, earlier = pruner.checked_select(replace(first, last=True)), []
        return write_report([first.layout], [selection], self.valid, [earlier])


def remembering(pruner: TokenPruner, seen: list[ImageEvidence], *, always: bool = False) -> TokenPruner:
    """A pruner that does what this one does, and appends the evidence that it chose from to ``seen``.

    Args:
        always: gather evidence even where every token stays.
    """
    kind: Any = type(pruner)
    twin = _remembering(kind)(**{each.name: getattr(pruner, each.name) for each in fields(pruner)})
    twin._seen, twin._always = seen, always
    return twin


@cache  # classes are never forgotten: one a method, and nothing of a visitor in it
def _remembering(kind: Any) -> Any:
    class Remembering(kind):
        _seen: list[ImageEvidence]
        _always: bool

        @property
        def needs(self) -> frozenset[str]:
            """Also what PTP's levels need that are switched off, so that they can be switched on."""
            return super().needs | (PaperTokenPruning().needs if issubclass(kind, PyramidTokenPruning) else frozenset())

        def select_all(self, images: Sequence[ImageEvidence]) -> list[Selection]:
            self._seen.extend(images)
            return super().select_all(images)

        def keeps_all(self, num_tokens: int | None = None) -> bool:
            return not self._always and super().keeps_all(num_tokens)

    Remembering.__name__ = kind.__name__  # errors name the method
    return Remembering
