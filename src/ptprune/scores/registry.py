"""One registry a level: a score is a function of an image's evidence, known by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor

from ptprune.errors import MethodError, PtpruneError, Refused, SettingError
from ptprune.scores.answers import check_scores
from ptprune.scores.evidence import ImageEvidence, wrong_needs


@dataclass(frozen=True)
class Score:
    """A named score.

    Attributes:
        level: "region", "token" or "instruction".
        name: what users write.
        needs: fields of ``ImageEvidence`` that it reads.
        function: evidence -> FloatTensor, one value a region (region level) or a token.
        about: one line on what it is and when to use it.
    """

    level: str
    name: str
    needs: frozenset[str]
    function: Callable[[ImageEvidence], Tensor]
    about: str

    def compute(self, image: ImageEvidence) -> Tensor:
        """The image's scores: FloatTensor [num_regions] (region level) or [num_tokens], on the image's device.

        Raises:
            MethodError: where the function returns anything else, or values of a user's that are not finite.
            Refused: where values of this package's scores are not finite.
        """
        length = len(image.layout.regions) if self.level == "region" else image.layout.num_tokens
        whose = f"{self.level} score {self.name!r}"
        return check_scores(whose, self.function(image), length, image.device, self._not_finite)

    def _not_finite(self) -> PtpruneError:
        # the package's own scores are finite where the model's numbers are; of a user's score nobody can say that
        if (getattr(self.function, "__module__", None) or "").partition(".")[0] == __name__.partition(".")[0]:
            return Refused(
                f"the {self.level} scores hold NaN or infinite values: the model's activations overflowed "
                f"({self.level}={self.name!r})"
            )
        return MethodError(f"{self.level} score {self.name!r} holds NaN or infinite values")


class ScoreRegistry:
    """The scores of one level by name.

    Args:
        level: "region" scores have one value a region, all others one a token.
        reserved: names that mean something else where a score is chosen.
    """

    def __init__(self, level: str, reserved: tuple[str, ...] = ()) -> None:
        self.level, self.reserved = level, reserved
        self._scores: dict[str, Score] = {}

    def register(
        self, name: str, *, needs: Collection[str] = ()
    ) -> Callable[[Callable[[ImageEvidence], Tensor]], Callable[[ImageEvidence], Tensor]]:
        """Decorator that adds a score; the first line of its docstring says what it is.

        Raises:
            SettingError: on a name that is no string or is taken, a need that ``ImageEvidence`` does not have, or a
                score that cannot be called.
        """
        if not isinstance(name, str) or not name:
            raise SettingError(f"a {self.level} score is registered under a name, a string, got {name!r}")
        if name in self._scores or name in self.reserved:
            raise SettingError(f"a {self.level} score named {name!r} exists already")
        if (wrong := wrong_needs(needs)) is not None:
            raise SettingError(f"unknown needs of {self.level} score {name!r}: {wrong}")
        wanted = frozenset(needs)

        def add(compute: Callable[[ImageEvidence], Tensor]) -> Callable[[ImageEvidence], Tensor]:
            if not callable(compute):
                raise SettingError(f"{self.level} score {name!r} must be a function of ImageEvidence, got {compute!r}")
            about = (compute.__doc__ or "").strip().split("\n")[0]
            self._scores[name] = Score(self.level, name, wanted, compute, about)
            return compute

        return add

    def __getitem__(self, name: str) -> Score:
        return self._scores[name]

    def __contains__(self, name: object) -> bool:
        return name in self._scores

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._scores)
