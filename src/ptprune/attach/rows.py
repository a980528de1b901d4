"""Look at the queries and keys of one attention module for one call, without changing what it computes.

The module gets, for that call, a shallow copy of its config whose attention implementation is ours; our function shows
the queries and keys (after rotary embedding and normalisation, as every family passes them), puts the true config back
and hands over to the model's own implementation, be it eager, sdpa or flash attention.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "ptprune_rows"

#: receive(query [batch, heads, queries, d], key [batch, key_value_heads, keys, d], scaling)
Receiver = Callable[[Tensor, Tensor, float], None]


class AttentionTap:
    """Shows one call's queries and keys of one attention module to a receiver."""

    def __init__(self, module: Any, receive: Receiver) -> None:
        self.receive = receive
        self._module = module
        self._config: Any = None

    def arm(self) -> None:
        """From now on, until the module's next call or ``disarm``, the module looks through this tap."""
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


class _Enough(Exception):
    """Leaves a layer that was run only for its queries and keys."""


def run_to_attention(layer: Any, attention: Any, receive: Receiver, *args: Any, **kwargs: Any) -> None:
    """Run a layer up to the queries and keys of its attention, without the attention itself and what follows."""

    def receive_and_leave(query: Tensor, key: Tensor, scaling: float) -> None:
        receive(query, key, scaling)
        raise _Enough

    tap = AttentionTap(attention, receive_and_leave)
    tap.arm()
    try:
        layer.forward(*args, **kwargs)  # not the module's call: its hooks are ours
    except _Enough:
        pass
    finally:
        tap.disarm()


def _show_and_attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    tap: AttentionTap = module.config.ptprune_tap
    tap.disarm()
    scaling = kwargs.get("scaling")
    tap.receive(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
    return attend(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _show_and_attend)
