"""Time on any device, and what several rounds of it say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from ptprune.clock import Clock
from ptprune.results.rows import Spread


class EventClock(Clock):
    """A clock that marks laps by events on the GPU's stream, so that the CPU may run ahead as it does in real use.

    ``seconds`` holds nothing before ``settle``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._spans: list[tuple[str, Any, Any]] = []
        self._last: Any = None

    def _count(self) -> None:
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record()
        if self._running:
            self._spans.append((self._running[-1], self._last, event))
        self._last = event

    def settle(self) -> None:
        """Wait for the GPU once, and add up."""
        torch.cuda.synchronize()
        for name, start, end in self._spans:
            self.seconds[name] += start.elapsed_time(end) / 1000  # milliseconds
        self._spans.clear()


def clock_for(device: str) -> Clock:
    """A clock for one run on a device."""
    return EventClock() if torch.device(device).type == "cuda" else Clock()


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The order of round ``by``: no arm always runs in another's wake."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most over the rounds."""
    return Spread(median=statistics.median(values), min=min(values), max=max(values))
