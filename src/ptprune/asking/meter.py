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
    """Hooks on a model's forward: the first call is the prefill, every later one decodes a token.

    Attributes:
        passes: calls so far.
        kv_bytes, full_kv_bytes: of the cache after the first call, as it is and had nothing been dropped.
    """

    def __init__(self, model: Any, clock: Clock, on_pass: Callable[[int], None]) -> None:
        self.model = model
        self.clock = clock
        self.passes = 0
        self.kv_bytes = self.full_kv_bytes = 0
        self._on_pass = on_pass
        self._lap = ExitStack()

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
            self.kv_bytes = cache_bytes(cache_of(output))
            self.full_kv_bytes = full_cache_bytes(cache_of(output), self.model.config)
        self.passes += 1


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds."""
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def full_cache_bytes(cache: Any, config: Any) -> int:
    """Bytes that a cache would hold had no token been dropped from it.

    Args:
        config: of the model, which says how many tokens a layer with a sliding window keeps.
    """
    seen, total = cache.get_seq_length(), 0
    unpruned: Any = DynamicCache(config=config)
    for layer, fresh in zip(cache.layers, unpruned.layers, strict=True):
        held = min(seen, fresh.sliding_window - 1) if fresh.is_sliding else seen
        one_token = [part[:, :, :1] for part in (layer.keys, layer.values)]
        total += held * sum(part.numel() * part.element_size() for part in one_token)
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
