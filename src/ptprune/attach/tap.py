"""Look at the queries and keys of one attention module for one call, without changing what it computes.

The module gets, for that call, a shallow copy of its config whose attention implementation is ours; our function shows
the queries and keys (after rotary embedding and normalisation, as every family passes them), puts the true config back
and hands over to the model's own implementation, be it eager, sdpa or flash attention.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptprune.attach.wrapping import wrap
from ptprune.errors import BrokenPass, UnknownTransformers
from ptprune.scores.attention import QueriesAndKeys

IMPLEMENTATION = "ptprune_rows"
EAGER = "eager_attention_forward"  # in the file of each model


class AttentionTap:
    """Shows queries and keys of one attention module to a receiver, once for each time it calls its function."""

    def __init__(self, module: Any, receive: Callable[[QueriesAndKeys], None]) -> None:
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

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        """Show queries and keys, and let the module's own attention function compute, under its true config."""
        module, scaling, starts = self._module, kwargs.get("scaling"), kwargs.get("cu_seq_lens_q")
        if scaling is None:  # the attention function would choose one by itself, and not tell
            raise UnknownTransformers(f"{type(module).__name__} hands no scaling to its attention function")
        tapped, module.config = module.config, self._config
        try:
            self.calls += 1
            lengths = None if starts is None else starts.diff().tolist()
            self.receive(QueriesAndKeys(query, key, scaling, attention_mask, lengths))
            # the eager function is in the file of the module's class, or of one that it derives from
            files = (sys.modules[kind.__module__] for kind in type(module).__mro__)
            eager = next(found for file in files if (found := getattr(file, EAGER, None)) is not None)
            own = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
            return own(module, query, key, value, attention_mask, **kwargs)
        finally:
            module.config = tapped


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

    def zeros(original: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return states.new_zeros(()).expand(*states.shape[:-1], attention.head_dim)

    with ExitStack() as undo:
        for name in ("q_proj", "v_proj"):
            if (module := getattr(attention, name, None)) is not None:
                undo.callback(wrap(module, "forward", zeros))
        yield


def _show_and_attend(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module.config.ptprune_tap.attend(*args, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _show_and_attend)
