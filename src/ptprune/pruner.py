"""The class that users see: a pruner is a plain dataclass of settings, used on a model in a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from ptprune.attach.attachment import Attachment, join
from ptprune.attach.tile_cache import TileCache
from ptprune.encoding import SPARING, EncoderSettings
from ptprune.errors import MethodError
from ptprune.layout import ImageLayout
from ptprune.report import PruningReport, ReportLog
from ptprune.scores.answers import check_selection
from ptprune.scores.evidence import ImageEvidence, wrong_needs
from ptprune.selection import Selection
from ptprune.settings import RATIO, one_of, setting, whole
from ptprune.steps import Steps, finish

if TYPE_CHECKING:
    from ptprune.clock import Clock

# Who collects reports, see ``TokenPruner.reports``: threads and asyncio tasks each see their own.
_collecting: ContextVar[tuple[tuple[TokenPruner, ReportLog], ...]] = ContextVar("ptprune_collecting", default=())


@dataclass(kw_only=True)
class TokenPruner(EncoderSettings):
    """Base class of all pruning methods. A method overrides ``select``.

    Attributes:
        keep_ratio: share of an image's prunable visual tokens to keep, over 0 and at most 1.
        keep_tokens: number of tokens to keep in each image, instead of a ratio.
        layer: the language model layer before which tokens are dropped; 0 drops them before the language model.
        positions: "original" keeps each token's position id, "compact" renumbers the kept tokens.
        window: side of a window in visual tokens. Windows replace tiles in models without tiles (Qwen-VL, GLM-4V): the
            image is cut into the fewest windows of at most this size. None makes the whole image one region.

    See ``EncoderSettings`` for those that say what is encoded.
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
        """The layers before which tokens are dropped, increasing; ``select`` is called at each of them.

        There is one such layer, except for methods that drop tokens in stages.

        Args:
            num_layers: of the language model.
        """
        return (self.layer,)

    @property
    def needs(self) -> frozenset[str]:
        """The fields of ``ImageEvidence`` that ``select`` reads. Nothing else is computed."""
        return frozenset()

    def select(self, image: ImageEvidence) -> Selection:
        """Choose the tokens of one image to keep: evidence in, indices and scores out."""
        if type(self).steps is TokenPruner.steps:
            raise NotImplementedError(f"{type(self).__name__} does not say which tokens to keep")
        return finish([self.steps(image)])[0]

    def steps(self, image: ImageEvidence) -> Steps:
        """``select`` as a generator, for methods that need numbers on the host.

        It yields tensors [n], receives their values as lists of floats, and returns the selection. A read from a device
        waits for all of its work, so the tensors of all images of a batch are read at once. Work that several images
        can share is asked for by ``joint``. A method overrides either ``select`` or this.
        """
        return self.select(image)
        yield  # makes this a generator

    @property
    def needs_grids(self) -> bool:
        """Whether ``select`` relies on regions that have all tokens of their ``grid``: no patch may be missing then."""
        return False

    def sparing(self) -> TokenPruner:
        """The pruner with ``SPARING``, where it drops tokens at all, and what is encoded is at its defaults."""
        return self if self.differing(EncoderSettings) or self.keeps_all() else replace(self, **SPARING)

    def keeps_all(self, num_tokens: int | None = None) -> bool:
        """Whether every token of an image stays, whatever the evidence: none is gathered then, and nothing is scored.

        Methods of this package keep exactly ``num_kept`` tokens. A class that defines ``select`` or ``steps`` itself
        answers False, until it overrides this too; one that wants scores at ``keep_ratio=1`` overrides it with False.

        Args:
            num_tokens: of the image; None: of any image.
        """
        if not self._trusted:
            return False
        if num_tokens is None:
            return self.keep_tokens is None and self.keep_ratio == 1 and type(self).num_kept is TokenPruner.num_kept
        return self.num_kept(num_tokens) == num_tokens

    def check_needs(self) -> None:
        """Check that ``needs`` names fields of ``ImageEvidence``.

        Raises:
            MethodError: naming the class, the unknown names, similar names, and all names.
        """
        needs: object = self.needs
        if not isinstance(needs, Set):
            raise MethodError(f"{type(self).__name__}.needs must be a set of names, got {needs!r}")
        if (wrong := wrong_needs(needs)) is not None:
            raise MethodError(f"{type(self).__name__}.needs names unknown evidence: {wrong}")

    def num_kept(self, num_tokens: int) -> int:
        """How many of an image's tokens to keep: ``max(1, round(keep_ratio * num_tokens))``, with Python's round."""
        wanted = round(self.keep_ratio * num_tokens) if self.keep_tokens is None else self.keep_tokens
        return min(max(1, wanted), num_tokens)

    def num_after(self, cut: int, num_tokens: int) -> int:
        """How many of an image's tokens are left behind cut number ``cut``, from 0, where another one follows."""
        return self.num_kept(num_tokens)

    def schedule(self, num_layers: int, num_tokens: int, kept: int | None = None) -> list[tuple[int, int]]:
        """(layer, an image's tokens from there on) of each cut, in a language model of ``num_layers`` layers. Cuts
        behind the first that drop nothing are left out.

        Args:
            kept: how many stay in the end; None: ``num_kept``.
        """
        *earlier, last = self.cut_layers(num_layers)
        left = [(layer, self.num_after(cut, num_tokens)) for cut, layer in enumerate(earlier)]
        cuts = [*left, (last, self.num_kept(num_tokens) if kept is None else kept)]
        return [cuts[0], *(cut for before, cut in pairwise(cuts) if cut[1] < before[1])]

    def keeps_rest(self, num_left: int, num_tokens: int) -> bool:
        """Whether no later cut drops any of the ``num_left`` tokens that an earlier one left of an image."""
        return self._trusted and num_left <= self.num_kept(num_tokens)

    def budget(self, layout: ImageLayout) -> int:
        """``num_kept`` of all of an image's tokens, but at most those that are there.

        Tokens are missing where some of the image was not encoded, or was dropped in an earlier stage.
        """
        return min(self.num_kept(layout.num_unpruned), layout.num_tokens)

    @contextmanager
    def __call__(
        self, model: nn.Module, clock: Clock | None = None, tile_cache: TileCache | None = None
    ) -> Iterator[TokenPruner]:
        """Prune ``model`` inside a ``with`` block.

        Blocks of the same pruner may overlap, also across threads. The model is pruned until the last block ends, which
        waits for calls that other threads have begun.

        Args:
            clock: adds up the seconds of "vision" and of "select" (all work that this package adds).
            tile_cache: keeps features of tiles between calls; overlapping blocks have to share one.

        Raises:
            UnsupportedModel, AttachError, Refused, UnknownTransformers: see ``attach``.
        """
        attachment = join(self, model, clock, tile_cache)
        try:
            yield self
        finally:
            attachment.leave()

    def attach(self, model: nn.Module, tile_cache: TileCache | None = None) -> None:
        """Prune ``model`` until ``detach`` is called, for pipelines and servers.

        Args:
            tile_cache: keeps features of tiles between calls.

        Raises:
            UnsupportedModel: on a model of no supported family.
            AttachError: if a pruner is attached already, or the model is compiled.
            Refused: if this pruner's settings do not fit the model.
            UnknownTransformers: if the installed transformers is not as this version of the package expects it.
        """
        self._attachments.append(Attachment(self, model, cache=tile_cache))

    def detach(self) -> None:
        """Restore every model that ``attach`` was called with. Does nothing if there is none.

        Raises:
            AttachError: inside a call of such a model.
        """
        while self._attachments:
            self._attachments[-1].leave()
            self._attachments.pop()

    def checked_select(self, image: ImageEvidence) -> Selection:
        """Choose the tokens of one image, see ``select_all``."""
        return self.select_all([image])[0]

    def select_all(self, images: Sequence[ImageEvidence]) -> list[Selection]:
        """Choose the tokens of every image, without gradients, and check the answers.

        Raises:
            MethodError: if an answer is not a choice of its image's tokens; names the method and what is wrong.
        """
        return select_each([(self, image) for image in images])

    def _run(self, image: ImageEvidence) -> Steps:
        return self.steps(image) if "steps" in self._decides.__dict__ else TokenPruner.steps(self, image)

    @property
    def _decides(self) -> type:
        """The most derived class that defines ``select`` or ``steps``."""
        return next(each for each in type(self).__mro__ if {"steps", "select"} & each.__dict__.keys())

    @property
    def _trusted(self) -> bool:
        """Whether that class is this package's."""
        return self._decides.__module__.partition(".")[0] == __name__.partition(".")[0]

    def hold(self, models: int) -> None:
        """Count models that use these settings. Settings cannot change while there are any."""
        self._in_use += models

    def forget(self) -> None:
        """Forget the last report, because a new call with pictures begins."""
        self._last = ReportLog()

    def record(self, write: Callable[[], PruningReport], heavy: bool = False) -> None:
        """Remember a prefill. Its report is written when it is first read, not while the model waits.

        Args:
            heavy: ``write`` holds pictures. Where reports are collected, they would pile up: it is called at once.
        """
        log = ReportLog()
        log.add(write)
        self._last = log
        for pruner, collected in _collecting.get():
            if pruner is self:
                collected.add(lambda: log[0])
                if heavy:
                    collected[-1]

    @property
    def report(self) -> PruningReport | None:
        """The report of the last pruned prefill; None if there was none, or if the last call failed before it.

        With several threads this may be another thread's prefill: use ``reports`` there.
        """
        log = self._last
        return log[-1] if log else None

    @contextmanager
    def reports(self) -> Iterator[ReportLog]:
        """Collect the reports of the prefills inside a ``with`` block, in order.

        These are the prefills that this thread or asyncio task begins, also through ``asyncio.to_thread``, and no
        others.
        """
        collected = ReportLog()
        token = _collecting.set((*_collecting.get(), (self, collected)))
        try:
            yield collected
        finally:
            _collecting.reset(token)


def select_each(choices: Sequence[tuple[TokenPruner, ImageEvidence]]) -> list[Selection]:
    """``select_all`` for images that are pruned by different settings."""
    with torch.no_grad():
        selections = finish([pruner._run(image) for pruner, image in choices])
    return [
        check_selection(type(pruner).__name__, selection, image, pruner._trusted)
        for (pruner, image), selection in zip(choices, selections, strict=True)
    ]
