"""What pruning adds to a prefill on a CUDA device: synchronisations that torch finds, and microseconds."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch

ROUNDS = 15


def synchronisations(run: Callable[[], Any]) -> int:
    """How often a run made the host wait for the device, as far as torch can tell."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in found)


def microseconds(run: Callable[[], Any]) -> float:
    """How long a run keeps the device, by events on its stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return 1000 * start.elapsed_time(end)


def added(stock: Callable[[], Any], pruned: Callable[[], Any]) -> tuple[int, float]:
    """Synchronisations and microseconds that pruning adds: medians of runs in turns. Both have run before."""
    more = synchronisations(pruned) - synchronisations(stock)
    times = [(microseconds(stock), microseconds(pruned)) for _ in range(ROUNDS)]
    return more, statistics.median(after - before for before, after in times)
