"""One call of a model at a time: visitors wait for each other, and hear of their own call while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

R = TypeVar("R")


class Turns:
    """A single thread in which all models are loaded and called, in the order of asking.

    A pruner is attached to a model for everybody who calls it, so no two calls may overlap.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ptprune-app")

    def run(self, work: Callable[[], R]) -> R:
        """The result of ``work``, when its turn has come. Raises what it raises."""
        return self._thread.submit(work).result()

    def follow(self, work: Callable[[Callable[[Any], None]], R]) -> Generator[Any, None, R]:
        """Yield what ``work`` says while it runs, and return its result. Raises what it raises.

        Args:
            work: is given the function with which it says things.
        """
        said: SimpleQueue[Any] = SimpleQueue()
        end = object()
        future = self._thread.submit(work, said.put)
        future.add_done_callback(lambda _: said.put(end))
        while (word := said.get()) is not end:
            yield word
        return future.result()

    def close(self) -> None:
        """Drop what waits; what runs goes on until it ends."""
        self._thread.shutdown(wait=False, cancel_futures=True)
