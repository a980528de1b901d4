"""The vision side of a pruned prefill: read on the way what the encoder computes anyway."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptprune.attach.later import Later, sizes_alone
from ptprune.attach.setup import Setup
from ptprune.attach.tower import TowerCall
from ptprune.attach.watch import watching
from ptprune.conventions import named
from ptprune.families.encoded import Encoded, Encoding, EvidenceRequest
from ptprune.families.prompt_image import PromptImage


@dataclass(eq=False)
class VisionWatch:
    """Wraps ``get_image_features``; its output carries what the family made of it as ``.ptprune``.

    Attributes:
        deliver: told of the images of each call. The attribute alone would not do: accelerate, where it moves an output
            between devices, copies it without.
        find: finds images that are described, but not encoded yet, in the prompt; None: there is none.
    """

    setup: Setup
    wanted: EvidenceRequest
    deliver: Callable[[Sequence[Encoded]], None]
    find: Callable[[Sequence[Encoded]], list[PromptImage] | None]
    _video: bool = False  # video features are being computed
    _call: TowerCall | None = None  # at work, where tiles are encoded apart

    @property
    def later(self) -> bool:
        """Whether the output is described only if a report is read: nothing is chosen from it, and all is encoded."""
        return self.setup.keeps_all and not self.setup.pruner.leaves_out

    def encode(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Wraps the vision tower's forward."""
        return original(*args, **kwargs) if self._call is None else self._call.encode(original, *args, **kwargs)

    def project(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Wraps the projector's forward."""
        return original(*args, **kwargs) if self._call is None else self._call.project(original, *args, **kwargs)

    def image_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._video:  # some models encode videos through here
            return original(*args, **kwargs)
        setup, call = self.setup, named(original, args, kwargs)
        if setup.encoder is not None:
            return self._apart(original, call, args, kwargs)
        if self.later:
            with setup.lap("vision"):
                output = original(*args, **kwargs)
            if not isinstance(output, tuple):
                self.deliver(self._described_later(call, output))
            return output
        with watching(setup, call, self.wanted.names) as seen, setup.lap("vision"):
            output = original(*args, **kwargs)
        if not isinstance(output, tuple):
            self._describe(call, output, {name: torch.cat(parts) for name, parts in seen.items()})
        return output

    def _apart(self, original: Callable[..., Any], call: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """A call whose tiles are encoded by a ``TowerCall``."""
        work = self._call = TowerCall(self.setup, call, self.wanted.names, self.find)
        try:
            with self.setup.lap("vision"):
                output = original(*args, **kwargs)
        finally:
            self._call = None
        if isinstance(output, tuple):
            return output
        if self.later:
            self.deliver(self._described_later(call, output))
        else:
            self._describe(call, output, work.attention, work.encoding)
        return output

    def _describe(
        self, call: dict[str, Any], output: Any, attention: Mapping[str, Tensor], encoding: Encoding | None = None
    ) -> None:
        with self.setup.lap("select"):
            made = output.ptprune = self.setup.family.encoded(
                self.setup.model, call, output, attention, self.wanted, encoding
            )
        self.deliver(made)

    def _described_later(self, call: Mapping[str, Any], output: Any) -> Later:
        sizes = sizes_alone(output)
        described = Later(lambda: self.setup.family.encoded(self.setup.model, call, sizes, {}, self.wanted))
        output.ptprune = described
        return described

    def video_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"videos are not pruned in {self.setup.family.name}: all their tokens stay", stacklevel=2)
        self._video = True
        try:
            with self.setup.lap("vision"):
                return original(*args, **kwargs)
        finally:
            self._video = False
