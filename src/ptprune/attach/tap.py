"""Look at the queries and keys of one attention module for one call, without changing what it computes.

The module gets, for that call, a shallow copy of its config whose attention implementation is ours; our function shows
the queries and keys (after rotary embedding and normalisation, as every family passes them), puts the true config back
and hands over to the model's own implementation, be it eager, sdpa or flash attention.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptprune.errors import BrokenPass, UnknownTransformers
from ptprune.scores.attention import QueriesAndKeys

IMPLEMENTATION = "ptprune_rows"
EAGER = "eager_attention_forward"  # in the file of each model


Receiver = Callable[[QueriesAndKeys], None]


class AttentionTap:
    """Shows queries and keys of one attention module to a receiver, once for each time it calls its function."""

    def __init__(self, module: Any, receive: Receiver) -> None:
        self.receive = receive
        self.calls = 0
        self._module = module
        self._config: Any = None

    def arm(self) -> None:
        """From now on, until ``disarm``, the module looks through this tap."""
        if self._config is not None:
            return
        self._config = self._module.config
        tapped = copy.copy(self._config)
        tapped._attn_implementation = IMPLEMENTATION
        tapped.ptprune_tap = self
        self._module.config = tapped

    def disarm(self) -> None:
        if self._config is not None:
            self._module.config, self._config = self._config, None

    @contextmanager
    def resting(self) -> Iterator[None]:
        """The module as it is without this tap."""
        tapped, self._module.config = self._module.config, self._config
        try:
            yield
        finally:
            self._module.config = tapped


class _AttentionReached(Exception):
    """Leaves a layer that was run only for its queries and keys."""


def run_to_attention(layer: Any, attention: Any, hidden_states: Tensor, call: dict[str, Any]) -> QueriesAndKeys:
    """Run a layer up to the queries and keys of its attention, without the attention itself and what follows."""
    seen: list[QueriesAndKeys] = []

    def receive_and_leave(qk: QueriesAndKeys) -> None:
        seen.append(qk)
        raise _AttentionReached

    tap = AttentionTap(attention, receive_and_leave)
    tap.arm()
    try:
        layer.forward(hidden_states, **call)  # not the module's call: its hooks are ours
    except _AttentionReached:
        pass
    finally:
        tap.disarm()
    if not seen:
        raise BrokenPass(f"{type(layer).__name__} ran without calling the attention module that is looked at")
    return seen[0]


@contextmanager
def keys_alone(attention: Any) -> Iterator[None]:
    """Queries and values are not computed: one head of zeros stands for all of them.

    A module that projects them together with its keys computes them all the same.
    """
    idle = [module for name in ("q_proj", "v_proj") if (module := getattr(attention, name, None)) is not None]
    own = [module.__dict__.get("forward") for module in idle]

    def zeros(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return states.new_zeros(()).expand(*states.shape[:-1], attention.head_dim)

    try:
        for module in idle:
            module.forward = zeros
        yield
    finally:
        for module, forward in zip(idle, own, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward


def _show_and_attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    tap: AttentionTap = module.config.ptprune_tap
    with tap.resting():
        scaling, starts = kwargs.get("scaling"), kwargs.get("cu_seq_lens_q")
        if scaling is None:  # the attention function would choose one by itself, and not tell
            raise UnknownTransformers(f"{type(module).__name__} hands no scaling to its attention function")
        tap.calls += 1
        tap.receive(
            QueriesAndKeys(query, key, scaling, attention_mask, None if starts is None else starts.diff().tolist())
        )
        eager = _eager(module)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
        return attend(module, query, key, value, attention_mask, **kwargs)


def _eager(module: Any) -> Callable[..., Any]:
    """The eager attention function of the file that a module's class, or one it derives from, is written in."""
    files = (sys.modules[kind.__module__] for kind in type(module).__mro__)
    return next(found for file in files if (found := getattr(file, EAGER, None)) is not None)


AttentionInterface.register(IMPLEMENTATION, _show_and_attend)
