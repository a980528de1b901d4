"""What attaching asks of a method. ``TokenPruner`` is one; nothing here depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ptprune.report import PruningReport
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


class Method(Protocol):
    """Where to cut, what to look at, what to keep; see ``TokenPruner``."""

    positions: str
    window: int | None

    def cut_layers(self, num_layers: int) -> tuple[int, ...]: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def check_needs(self) -> None: ...

    def hold(self, models: int) -> None: ...

    def checked_select(self, image: ImageEvidence) -> Selection: ...

    def forget(self) -> None: ...

    def record(self, write: Callable[[], PruningReport]) -> None: ...
