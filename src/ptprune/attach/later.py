"""The images of a call where every token stays: described only if a report is read, so that nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, overload

from torch import Tensor

from ptprune.families.encoded import Encoded


class Later(Sequence[Encoded]):
    """Encoded images that are made when first asked for."""

    def __init__(self, make: Callable[[], Sequence[Encoded]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Sequence[Encoded]:
        made = self._make()
        del self._make  # and with it the pictures
        return made

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        return self._made[index]


def sizes_alone(output: Any) -> Any:
    """What is left of an image encoder's output where only its sizes are asked for: it holds no features."""
    features = output.pooler_output
    parts = [features] if isinstance(features, Tensor) else features
    return SimpleNamespace(pooler_output=[SimpleNamespace(shape=part.shape) for part in parts])
