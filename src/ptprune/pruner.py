"""What users touch: a pruner is a plain dataclass of numbers and names, used on a model through ``with``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ptprune.attach.attachment import Attachment, join
from ptprune.errors import MethodError, SettingError
from ptprune.report import PruningReport, ReportLog
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection

if TYPE_CHECKING:
    from ptprune.clock import Clock

# Who collects reports, see ``TokenPruner.reports``: threads and asyncio tasks each see their own.
_collecting: ContextVar[tuple[tuple[TokenPruner, ReportLog], ...]] = ContextVar("ptprune_collecting", default=())


@dataclass(kw_only=True)
class TokenPruner:
    """Base of every method that drops visual tokens. A method overrides ``select``.

    Attributes:
        keep_ratio: share of an image's prunable visual tokens that stay, over 0 and up to 1.
        keep_tokens: a fixed number of tokens an image instead of a ratio.
        layer: tokens are dropped before this language model layer; 0 drops before the language model.
        positions: "original" keeps each token's position id, "compact" numbers the kept tokens anew.
        window: visual tokens a side of the windows that stand for tiles where a model has none (Qwen-VL, GLM-4V); the
            whole image is cut into the fewest windows of at most this size. None: the whole image is one region.
    """

    keep_ratio: float = 0.5
    keep_tokens: int | None = None
    layer: int = 2
    positions: str = "original"
    window: int | None = 16

    def __post_init__(self) -> None:
        self._attachments: list[Attachment] = []
        self._last = ReportLog()
        self._require(
            isinstance(self.keep_ratio, int | float) and 0 < self.keep_ratio <= 1, "keep_ratio", "over 0 and at most 1"
        )
        self._require(
            self.keep_tokens is None or (isinstance(self.keep_tokens, int) and self.keep_tokens >= 1),
            "keep_tokens",
            "None or a whole number from 1",
        )
        self._require(isinstance(self.layer, int) and self.layer >= 0, "layer", "a whole number from 0")
        self._require(
            self.window is None or (isinstance(self.window, int) and self.window >= 1),
            "window",
            "None or a whole number from 1",
        )
        self._require(self.positions in ("original", "compact"), "positions", "'original' or 'compact'")

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise SettingError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

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
        """``select``, and a clear error where a method's answer is not a set of this image's tokens."""
        with torch.no_grad():
            selection = self.select(image)
        kept, number = selection.kept, image.layout.num_tokens
        if kept.ndim != 1 or kept.dtype != torch.long or not len(kept):
            raise MethodError(f"{type(self).__name__}.select must return a LongTensor of at least one token")
        if selection.states is not None and len(selection.states) != len(kept):
            raise MethodError(f"{type(self).__name__}.select must return one hidden state a kept token, or none")
        if int(kept[0]) < 0 or int(kept[-1]) >= number or bool((kept[1:] <= kept[:-1]).any()):
            raise MethodError(f"{type(self).__name__}.select must return sorted unique indices below {number}")
        return selection

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

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings, never a model."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()
