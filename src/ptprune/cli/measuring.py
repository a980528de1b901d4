"""Where the time and the memory of one generate() call go."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ptprune.clock import Clock


class PhaseMeter:
    """Hooks on a model's forward: the first call is the prefill, every later one decodes a token."""

    def __init__(self, clock: Clock, on_pass: Callable[[int], None]) -> None:
        self.clock = clock
        self.passes = 0
        self.kv_bytes = 0
        self._on_pass = on_pass
        self._lap = ExitStack()

    @contextmanager
    def watch(self, model: torch.nn.Module) -> Iterator[None]:
        hooks = [model.register_forward_pre_hook(self._start), model.register_forward_hook(self._stop)]
        try:
            yield
        finally:
            self._lap.close()
            for hook in hooks:
                hook.remove()

    def _start(self, module: torch.nn.Module, args: Any) -> None:
        self._on_pass(self.passes)
        self._lap.enter_context(self.clock.lap("decode" if self.passes else "prefill"))

    def _stop(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._lap.close()
        if not self.passes:
            self.kv_bytes = cache_bytes(output.past_key_values)
        self.passes += 1


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds."""
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


@contextmanager
def vision_lap(model: Any, clock: Clock) -> Iterator[None]:
    """Time the unpruned model's vision side at the very place where a pruner times its own."""
    owner = model.base_model
    original, own = owner.get_image_features, owner.__dict__.get("get_image_features")

    @functools.wraps(original)  # generate() reads the signature
    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.lap("vision"):
            return original(*args, **kwargs)

    owner.get_image_features = timed
    try:
        yield
    finally:
        if own is None:
            del owner.get_image_features
        else:
            owner.get_image_features = own
