"""What users touch: a pruner is a plain dataclass of numbers and names, used on a model through ``with``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ptprune.attach.attachment import Attachment, join
from ptprune.errors import MethodError
from ptprune.report import PruningReport, ReportLog
from ptprune.scores.answers import check_selection
from ptprune.scores.evidence import ImageEvidence, wrong_needs
from ptprune.selection import Selection
from ptprune.settings import RATIO, Settings, one_of, setting, whole

if TYPE_CHECKING:
    from ptprune.clock import Clock

# Who collects reports, see ``TokenPruner.reports``: threads and asyncio tasks each see their own.
_collecting: ContextVar[tuple[tuple[TokenPruner, ReportLog], ...]] = ContextVar("ptprune_collecting", default=())


@dataclass(kw_only=True)
class TokenPruner(Settings):
    """Base of every method that drops visual tokens. A method overrides ``select``.

    Attributes:
        keep_ratio: share of an image's prunable visual tokens that stay, over 0 and up to 1.
        keep_tokens: a fixed number of tokens an image instead of a ratio.
        layer: tokens are dropped before this language model layer; 0 drops before the language model.
        positions: "original" keeps each token's position id, "compact" numbers the kept tokens anew.
        window: visual tokens a side of the windows that stand for tiles where a model has none (Qwen-VL, GLM-4V); the
            whole image is cut into the fewest windows of at most this size. None: the whole image is one region.
    """

    keep_ratio: float = setting(0.5, RATIO)
    keep_tokens: int | None = setting(None, whole(1, optional=True))
    layer: int = setting(2, whole(0))
    positions: str = setting("original", one_of("original", "compact"))
    window: int | None = setting(16, whole(1, optional=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        self._attachments: list[Attachment] = []
        self._last = ReportLog()

    def cut_layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers of a language model of ``num_layers`` before which tokens are dropped, increasing; ``select`` is
        asked at each. One layer, but for methods that drop in stages."""
        return (self.layer,)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``ImageEvidence`` that ``select`` reads; nothing else is computed."""
        return frozenset()

    def select(self, image: ImageEvidence) -> Selection:
        """Choose the tokens of one image that stay: scores in, indices out."""
        raise NotImplementedError(f"{type(self).__name__} does not say which tokens to keep")

    def check_needs(self) -> None:
        """Refuse ``needs`` that name anything but evidence.

        Raises:
            MethodError: naming the class, the unknown names, those spelt alike, and all that there are.
        """
        needs: object = self.needs
        if not isinstance(needs, Set):
            raise MethodError(f"{type(self).__name__}.needs must be a set of names, got {needs!r}")
        if (wrong := wrong_needs(needs)) is not None:
            raise MethodError(f"{type(self).__name__}.needs names unknown evidence: {wrong}")

    def num_kept(self, num_tokens: int) -> int:
        """How many of an image's ``num_tokens`` stay: ``max(1, round(keep_ratio * num_tokens))``, Python's round."""
        wanted = round(self.keep_ratio * num_tokens) if self.keep_tokens is None else self.keep_tokens
        return min(max(1, wanted), num_tokens)

    @contextmanager
    def __call__(self, model: nn.Module, clock: Clock | None = None) -> Iterator[TokenPruner]:
        """Prune ``model`` inside a ``with`` block. Blocks of the same pruner may overlap, also in several threads: the
        model is pruned until the last of them is left. That one waits for calls which other threads have begun.

        Args:
            clock: adds up the seconds of "vision" and "select" (all of this package's own work).

        Raises:
            UnsupportedModel, AttachError, Refused, UnknownTransformers: see ``attach``.
        """
        attachment = join(self, model, clock)
        try:
            yield self
        finally:
            attachment.leave()

    def attach(self, model: nn.Module) -> None:
        """Prune ``model`` until ``detach``, for pipelines and servers.

        Raises:
            UnsupportedModel: on a model of no supported family.
            AttachError: where a pruner is attached already, or the model is compiled.
            Refused: where this pruner's settings do not fit the model.
            UnknownTransformers: where the installed transformers is not as this version of the package knows it.
        """
        self._attachments.append(Attachment(self, model))

    def detach(self) -> None:
        """Leave every model that ``attach`` was given as it was. Without one, nothing happens.

        Raises:
            AttachError: inside a call of such a model.
        """
        while self._attachments:
            self._attachments[-1].leave()
            self._attachments.pop()

    def checked_select(self, image: ImageEvidence) -> Selection:
        """``select``, without gradients, its answer checked.

        Raises:
            MethodError: where the answer is not a choice of this image's tokens; names the method and what is wrong.
        """
        with torch.no_grad():
            return check_selection(type(self).__name__, self.select(image), image)

    def hold(self, models: int) -> None:
        """So many models more, or fewer, work with these settings now, which cannot be changed meanwhile."""
        self._in_use += models

    def forget(self) -> None:
        """A call with pictures begins: the last report is not about it."""
        self._last = ReportLog()

    def record(self, write: Callable[[], PruningReport]) -> None:
        """Remember a prefill; its report is written when somebody reads it, not while the model waits."""
        log = ReportLog()
        log.add(write)
        self._last = log
        for pruner, collected in _collecting.get():
            if pruner is self:
                collected.add(lambda: log[0])

    @property
    def report(self) -> PruningReport | None:
        """The last pruned prefill, or None before there was one, or where the last call failed before it. In a program
        with several threads that is anybody's last: use ``reports``."""
        log = self._last
        return log[-1] if log else None

    @contextmanager
    def reports(self) -> Iterator[ReportLog]:
        """The reports of the prefills inside a ``with`` block, in order: those that this thread or asyncio task begins,
        and those of functions that it awaits through ``asyncio.to_thread``; nobody else's."""
        collected = ReportLog()
        token = _collecting.set((*_collecting.get(), (self, collected)))
        try:
            yield collected
        finally:
            _collecting.reset(token)
