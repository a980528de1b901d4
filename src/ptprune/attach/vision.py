"""The vision side of a pruned prefill: read on the way what the encoder computes anyway."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ptprune.attach.rows import AttentionTap, Shown
from ptprune.conventions import named
from ptprune.errors import BrokenPass
from ptprune.families.base import Family, Model
from ptprune.families.encoded import EncodedImage, Wanted
from ptprune.scores.token import cls_row, received_attention


class VisionWatch:
    """Wraps ``get_image_features``; its output carries what the family made of it as ``.ptprune``.

    Args:
        lap: times a phase, by its name.
        deliver: told of the images of each call. The attribute alone would not do: accelerate, where it moves an output
            between devices, copies it without.
    """

    def __init__(
        self,
        family: type[Family],
        model: Model,
        wanted: Wanted,
        lap: Callable[[str], AbstractContextManager[Any]],
        deliver: Callable[[list[EncodedImage]], None],
    ) -> None:
        self.family, self.model, self.wanted, self.lap, self.deliver = family, model, wanted, lap, deliver
        self._video = False  # video features are being computed

    def image_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._video:  # some models encode videos through here
            return original(*args, **kwargs)
        call = named(original, args, kwargs)
        rows: dict[str, list[Tensor]] = {}
        has_cls = self.family.has_cls(self.model, call)

        def receive(shown: Shown) -> None:
            with self.lap("select"):
                for name, attention in patch_attention(shown, has_cls, self.wanted.names).items():
                    rows.setdefault(name, []).append(attention)

        tap = AttentionTap(self.family.vision_attention(self.model, call), receive)
        if self.wanted.names & {"cls_attention", "received_attention"}:
            tap.arm()
        try:
            with self.lap("vision"):
                output = original(*args, **kwargs)
        finally:
            tap.disarm()
        if self.wanted.names & {"cls_attention", "received_attention"} and not tap.shown:
            raise BrokenPass("the vision encoder ran, but not the attention module whose scores are wanted")
        if not isinstance(output, tuple):
            with self.lap("select"):
                attention = {name: torch.cat(parts) for name, parts in rows.items()}
                parts = output.ptprune = self.family.encoded(self.model, call, output, attention, self.wanted)
            self.deliver(parts)
        return output

    def video_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"videos are not pruned in {self.family.name}: all their tokens stay", stacklevel=2)
        self._video = True
        try:
            with self.lap("vision"):
                return original(*args, **kwargs)
        finally:
            self._video = False


def patch_attention(shown: Shown, has_cls: bool, wanted: Container[str]) -> dict[str, Tensor]:
    """Name in ``ImageEvidence`` -> FloatTensor [patches of all tiles]: attention from [CLS], attention received.

    Where there is no [CLS], the attention received stands for both.
    """
    attention = {}
    if "cls_attention" in wanted and has_cls:
        attention["cls_attention"] = cls_row(shown.query, shown.key, shown.scaling).flatten()
    if "received_attention" in wanted or ("cls_attention" in wanted and not has_cls):
        received = _received(shown)[:, int(has_cls) :].flatten()
        attention |= {name: received for name in ("received_attention", "cls_attention") if name in wanted} | attention
    return attention


def _received(shown: Shown) -> Tensor:
    if shown.lengths is None:
        return received_attention(shown.query, shown.key, shown.scaling, _valid(shown.mask))
    # flash attention gets pictures of different sizes as one sequence
    parts = zip(shown.query.split(shown.lengths, dim=2), shown.key.split(shown.lengths, dim=2), strict=True)
    return torch.cat([received_attention(q, k, shown.scaling) for q, k in parts], dim=1)


def _valid(mask: Tensor | None) -> Tensor | None:
    """BoolTensor [tiles, patches] of a mask that hides padded patches from all others."""
    if mask is None or mask.ndim == 2:
        return None if mask is None else mask.bool()
    row = mask[:, 0, 0]
    return row if row.dtype == torch.bool else row == 0
