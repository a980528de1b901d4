"""Training items made by many processes, each written into memory that the processes share."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import queue
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

Arrays = dict[str, np.ndarray]
T = TypeVar("T")
PATIENCE = 120  # seconds to wait for an item before the workers are taken for dead


class Stream:
    """``make(number, progress)`` for all numbers from ``first`` on, made in ``workers`` forked processes.

    Start it before anything touches the GPU. Items arrive in the order in which they are finished; with one worker that
    is the order of their numbers.
    """

    def __init__(
        self, make: Callable[[int, float], Arrays], first: int, workers: int, slots: int = 3, slot_bytes: int = 24 << 20
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._free: Any = context.Queue()
        self._full: Any = context.Queue()
        self._progress = context.Value("d", 0.0)
        self._memory = mmap.mmap(-1, workers * slots * slot_bytes)  # anonymous: needs no room in /dev/shm
        self._slot_bytes = slot_bytes
        for slot in range(workers * slots):
            self._free.put(slot)
        self._workers = [
            context.Process(target=self._work, args=(make, first + n, workers), daemon=True) for n in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def _work(self, make: Callable[[int, float], Arrays], number: int, stride: int) -> None:
        torch.set_num_threads(1)
        os.nice(5)  # the process that trains goes first
        while True:
            arrays = make(number, self._progress.value)
            slot = self._free.get()
            at, places = slot * self._slot_bytes, {}
            for name, array in arrays.items():
                if at + array.nbytes > (slot + 1) * self._slot_bytes:
                    raise RuntimeError(f"an item is larger than {self._slot_bytes} bytes")
                room = np.frombuffer(self._memory, array.dtype, array.size, at)
                room[:] = array.ravel()
                places[name] = (array.dtype.str, array.shape, at)
                at += -(-array.nbytes // 64) * 64
            self._full.put((slot, places))
            number += stride

    def tell(self, progress: float) -> None:
        """Tell the workers how much of the run, 0 to 1, is done."""
        self._progress.value = progress

    def next(self, wait: bool, take: Callable[[Arrays], T]) -> T | None:
        """What ``take`` makes of the next item; None where none is ready and ``wait`` is false.

        take : must copy the arrays, whose memory is used again.
        """
        try:
            slot, places = self._full.get(timeout=PATIENCE) if wait else self._full.get_nowait()
        except queue.Empty:
            if wait or not any(worker.is_alive() for worker in self._workers):
                raise RuntimeError("the processes that make training items are dead") from None
            return None
        arrays = {}
        for name, (dtype, shape, at) in places.items():
            size = int(np.prod(shape))
            arrays[name] = np.frombuffer(self._memory, dtype, size, at).reshape(shape)
        taken = take(arrays)
        self._free.put(slot)
        return taken

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
