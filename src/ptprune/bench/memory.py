"""Peak memory of one run on the CPU, by the tensors' own accounting: every allocation and release that torch reports.

The size of the process would not do: it counts the allocator's habits and whatever else runs. Here a peak is the same
in every run, to the byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at its first use, else it writes to the terminal


def peak_bytes(run: Callable[[], Any]) -> int:
    """By how many bytes tensors grow at most during a run. It is slow: measure no time in it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    return highest(found)


def highest(found: Any) -> int:
    """The largest sum of allocations less releases at any time of a profile."""
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return peak
