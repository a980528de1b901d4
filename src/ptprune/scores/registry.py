"""One registry a level: a score is a function of an image's evidence, known by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ptprune.errors import SettingError
from ptprune.scores.evidence import ImageEvidence


@dataclass(frozen=True)
class Score:
    """A named score.

    Attributes:
        name: what users write.
        needs: fields of ``ImageEvidence`` that it reads.
        compute: evidence -> FloatTensor, one value a region (region level) or a token.
        about: one line on what it is and when to use it.
    """

    name: str
    needs: frozenset[str]
    compute: Callable[[ImageEvidence], Tensor]
    about: str


class ScoreRegistry:
    """The scores of one level by name."""

    def __init__(self, level: str) -> None:
        self.level = level
        self._scores: dict[str, Score] = {}

    def register(
        self, name: str, *, needs: tuple[str, ...] = ()
    ) -> Callable[[Callable[[ImageEvidence], Tensor]], Callable[[ImageEvidence], Tensor]]:
        """Decorator that adds a score; the first line of its docstring says what it is.

        Raises:
            SettingError: on a name that is taken, or a need that ``ImageEvidence`` does not have.
        """
        unknown = [need for need in needs if need not in ImageEvidence.__dataclass_fields__]
        if unknown:
            raise SettingError(f"unknown needs {unknown} of {self.level} score {name!r}")
        if name in self._scores:
            raise SettingError(f"a {self.level} score named {name!r} exists already")

        def add(compute: Callable[[ImageEvidence], Tensor]) -> Callable[[ImageEvidence], Tensor]:
            about = (compute.__doc__ or "").strip().split("\n")[0]
            self._scores[name] = Score(name, frozenset(needs), compute, about)
            return compute

        return add

    def __getitem__(self, name: str) -> Score:
        return self._scores[name]

    def __contains__(self, name: object) -> bool:
        return name in self._scores

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._scores)
