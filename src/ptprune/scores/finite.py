"""Checks that evidence is finite in the one read that a method makes anyway."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from ptprune.errors import Refused

Reading = Generator[Sequence[Tensor], list[list[float]], list[list[float]]]


def read(evidence: Mapping[str, Tensor], *more: Tensor) -> Reading:
    """A part of ``TokenPruner.steps`` (``yield from``): check evidence, and read what else the host needs with it.

    Args:
        evidence: FloatTensors by name in ``ImageEvidence``.
        more: FloatTensors [n].

    Returns:
        The values of ``more``.

    Raises:
        Refused: if evidence holds NaN or infinite values, which cannot be ranked.
    """
    named = {name: values for name, values in evidence.items() if values.numel()}
    extremes = torch.stack([extreme for values in named.values() for extreme in torch.aminmax(values)])
    found, *numbers = yield [extremes, *more]
    for name, *both in zip(named, found[::2], found[1::2], strict=True):
        if not all(map(math.isfinite, both)):
            raise Refused(f"{name} holds NaN or infinite values: the model's activations overflowed")
    return numbers
