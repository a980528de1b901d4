"""The vision side of a pruned prefill: read on the way what the encoder computes anyway."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptprune.attach.later import Later, sizes_alone
from ptprune.attach.tap import AttentionTap
from ptprune.conventions import named
from ptprune.errors import BrokenPass
from ptprune.families.base import Family, Model
from ptprune.families.encoded import Encoded, EvidenceRequest
from ptprune.scores.attention import QueriesAndKeys, patch_scores


@dataclass(eq=False)
class VisionWatch:
    """Wraps ``get_image_features``; its output carries what the family made of it as ``.ptprune``.

    Attributes:
        later: whether the output is described only if a report is read: nothing is chosen from it.
        lap: times a phase, by its name.
        deliver: told of the images of each call. The attribute alone would not do: accelerate, where it moves an output
            between devices, copies it without.
    """

    family: type[Family]
    model: Model
    wanted: EvidenceRequest
    later: bool
    lap: Callable[[str], AbstractContextManager[Any]]
    deliver: Callable[[Sequence[Encoded]], None]
    _video: bool = False  # video features are being computed

    def image_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._video:  # some models encode videos through here
            return original(*args, **kwargs)
        call = named(original, args, kwargs)
        if self.later:
            with self.lap("vision"):
                output = original(*args, **kwargs)
            if not isinstance(output, tuple):
                self.deliver(self._described_later(call, output))
            return output
        seen: dict[str, list[Tensor]] = {}
        has_cls = self.family.has_cls(self.model, call)

        def receive(qk: QueriesAndKeys) -> None:
            with self.lap("select"):
                for name, attention in patch_scores(qk, has_cls, self.wanted.names).items():
                    seen.setdefault(name, []).append(attention)

        tap = AttentionTap(self.family.vision_attention(self.model, call), receive)
        if watched := self.wanted.names & {"encoder_attention", "received_attention"}:
            tap.arm()
        try:
            with self.lap("vision"):
                output = original(*args, **kwargs)
        finally:
            tap.disarm()
        if watched and not tap.calls:
            raise BrokenPass("the vision encoder ran, but not the attention module whose scores are wanted")
        if not isinstance(output, tuple):
            with self.lap("select"):
                attention = {name: torch.cat(parts) for name, parts in seen.items()}
                encoded = output.ptprune = self.family.encoded(self.model, call, output, attention, self.wanted)
            self.deliver(encoded)
        return output

    def _described_later(self, call: Mapping[str, Any], output: Any) -> Later:
        sizes = sizes_alone(output)
        described = Later(lambda: self.family.encoded(self.model, call, sizes, {}, self.wanted))
        output.ptprune = described
        return described

    def video_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"videos are not pruned in {self.family.name}: all their tokens stay", stacklevel=2)
        self._video = True
        try:
            with self.lap("vision"):
                return original(*args, **kwargs)
        finally:
            self._video = False
