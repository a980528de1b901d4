"""Collects on the way the attention that the vision encoder computes anyway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ptprune.attach.setup import Setup
from ptprune.attach.tap import AttentionTap
from ptprune.errors import BrokenPass
from ptprune.scores.attention import QueriesAndKeys, patch_scores
from ptprune.scores.evidence import PATCH_ATTENTION


@contextmanager
def watching(setup: Setup, call: Mapping[str, Any], names: frozenset[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Watch the encoder inside a ``with`` block.

    Args:
        call: arguments of ``get_image_features`` by name.
        names: the evidence that is wanted; what is not of ``PATCH_ATTENTION`` does not count here.

    Returns:
        Name in ``ImageEvidence`` -> what each call of the watched attention module gave, filled inside the block.

    Raises:
        BrokenPass: where the encoder ran, but not that module.
    """
    family, model = setup.family, setup.model
    seen: dict[str, list[Tensor]] = {}
    has_cls = family.has_cls(model, call)

    def receive(qk: QueriesAndKeys) -> None:
        with setup.lap("select"):
            for name, attention in patch_scores(qk, has_cls, names).items():
                seen.setdefault(name, []).append(attention)

    tap = AttentionTap(family.vision_attention(model, call), receive)
    if watched := names & PATCH_ATTENTION:
        tap.arm()
    try:
        yield seen
    finally:
        tap.disarm()
    if watched and not tap.calls:
        raise BrokenPass("the vision encoder ran, but not the attention module whose scores are wanted")
