"""The registries of scores, one a level. A score is a named function of an image's evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ptprune.errors import MethodError, Refused, SettingError
from ptprune.scores.answers import check_scores
from ptprune.scores.evidence import wrong_needs


@dataclass(frozen=True)
class Score:
    """A named score.

    Attributes:
        level: "region", "token" or "instruction".
        name: what users write.
        needs: fields of ``ImageEvidence`` that it reads.
        function: evidence -> FloatTensor, one value a region (region level) or a token.
        about: one line that says what it is and when to use it.
    """

    level: str
    name: str
    needs: frozenset[str]
    function: Callable[[Any], Tensor]
    about: str

    def compute(self, image: Any) -> Tensor:
        """An image's scores: FloatTensor [num_regions] (region level) or [num_tokens], on the image's device.

        Whoever uses them has to ``check_finite``: that takes a read from the device, which several scores can share.

        Raises:
            MethodError: if the function returns anything else.
        """
        length = len(image.layout.regions) if self.level == "region" else image.layout.num_tokens
        return check_scores(f"{self.level} score {self.name!r}", self.function(image), length, image.device)

    def check_finite(self, values: Iterable[float]) -> None:
        """Check the scores, or the smallest and the largest of them, on the host.

        Raises:
            MethodError: if a user's function returned values that are not finite.
            Refused: if one of this package's scores is not finite.
        """
        if all(map(math.isfinite, values)):
            return
        # the package's own scores are finite unless the model's numbers overflowed; a user's score may be wrong itself
        if (getattr(self.function, "__module__", None) or "").partition(".")[0] == __name__.partition(".")[0]:
            raise Refused(
                f"the {self.level} scores hold NaN or infinite values: the model's activations overflowed "
                f"({self.level}={self.name!r})"
            )
        raise MethodError(f"{self.level} score {self.name!r} holds NaN or infinite values")


class ScoreRegistry:
    """The scores of one level by name.

    Args:
        level: "region" scores have one value a region, all others one a token.
        reserved: names that no score may have, because the level's setting gives them another meaning.
        kind: how the scores are computed and checked.
    """

    def __init__(self, level: str, reserved: tuple[str, ...] = (), kind: type[Score] = Score) -> None:
        self.level, self.reserved, self._kind = level, reserved, kind
        self._scores: dict[str, Score] = {}

    def register(
        self, name: str, *, needs: Collection[str] = ()
    ) -> Callable[[Callable[[Any], Tensor]], Callable[[Any], Tensor]]:
        """Decorator that adds a score. The first line of the score's docstring describes it.

        Raises:
            SettingError: if the name is no string or is taken, a need is no field of ``ImageEvidence``, or the score
                cannot be called.
        """
        if not isinstance(name, str) or not name:
            raise SettingError(f"a {self.level} score is registered under a name, a string, got {name!r}")
        if name in self._scores or name in self.reserved:
            raise SettingError(f"a {self.level} score named {name!r} exists already")
        if (wrong := wrong_needs(needs)) is not None:
            raise SettingError(f"unknown needs of {self.level} score {name!r}: {wrong}")
        wanted = frozenset(needs)

        def add(compute: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
            if not callable(compute):
                raise SettingError(f"{self.level} score {name!r} must be a function of the evidence, got {compute!r}")
            about = (compute.__doc__ or "").strip().split("\n")[0]
            self._scores[name] = self._kind(self.level, name, wanted, compute, about)
            return compute

        return add

    def __getitem__(self, name: str) -> Score:
        return self._scores[name]

    def __contains__(self, name: object) -> bool:
        return name in self._scores

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._scores)
