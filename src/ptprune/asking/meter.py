"""Measures time and memory of one generate() call by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import DynamicCache

from ptprune.attach.wrapping import wrap
from ptprune.clock import Clock
from ptprune.conventions import IMAGE_FEATURES, cache_of
from ptprune.families import family_of


class PhaseMeter:
    """Hooks on a model's forward: the first call is the prefill, every later one decodes a token."""

    def __init__(self, model: Any, clock: Clock, on_pass: Callable[[int], None]) -> None:
        self.model, self.clock = model, clock
        self.passes = 0  # calls so far
        self.kv_bytes = self.full_kv_bytes = 0  # of the cache after the first, as it is and had nothing been dropped
        self._on_pass, self._lap = on_pass, ExitStack()

    @contextmanager
    def watch(self) -> Iterator[None]:
        hooks = [self.model.register_forward_pre_hook(self._start), self.model.register_forward_hook(self._stop)]
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
            cache = cache_of(output)
            self.kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            self.full_kv_bytes = full_cache_bytes(cache, self.model.config)
        self.passes += 1


def full_cache_bytes(cache: Any, config: Any) -> int:
    """Bytes that a cache would hold had no token been dropped from it.

    Args:
        config: of the model, which says how many tokens a layer with a sliding window keeps.
    """
    seen, total = cache.get_seq_length(), 0
    unpruned: Any = DynamicCache(config=config)
    for layer, fresh in zip(cache.layers, unpruned.layers, strict=True):
        held = min(seen, fresh.sliding_window - 1) if fresh.is_sliding else seen
        total += held * sum(part[:, :, :1].nbytes for part in (layer.keys, layer.values))
    return total


@contextmanager
def vision_lap(model: Any, clock: Clock) -> Iterator[None]:
    """Time the unpruned model's vision side at the very place where a pruner times its own."""

    def timed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with clock.lap("vision"):
            return original(*args, **kwargs)

    unwrap = wrap(family_of(model).multimodal(model), IMAGE_FEATURES, timed)
    try:
        yield
    finally:
        unwrap()
