"""A stopwatch with named laps, for the command line and the benchmarks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up wall-clock seconds by name. For measuring: it waits for the accelerator at both ends of a lap.

    A lap inside another one stops the outer, so that every second is counted once.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # by name, so far
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def _count(self) -> None:
        """Give the time since the last change to the lap that was running."""
        now = self._now()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @staticmethod
    def _now() -> float:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()

    def settle(self) -> None:
        """Finish counting; call it after the last lap. There is nothing left to do here."""
