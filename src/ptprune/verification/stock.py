"""The stock model made to ignore tokens: an oracle that shares no code with the cut.

Every decoder layer gets a 4D mask that blocks positions besides what it blocks anyway. No cache is used: every call
sees the whole sequence, so there is nothing to shorten and nothing to go wrong in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ptprune.conventions import LayerCall
from ptprune.families import family_of
from ptprune.families.base import Model


@contextmanager
def blocked(model: Model, dropped: Tensor, real: Tensor, layer: int) -> Iterator[None]:
    """Block dropped positions: for all queries in the layers from ``layer`` on, and in every layer for queries behind
    the prompt, which never saw them.

    Args:
        dropped: BoolTensor [batch, prompt].
        real: BoolTensor [batch, length], False on padding; length is that of the calls to come.
    """
    batch, length = real.shape
    gone = torch.zeros_like(real)
    gone[:, : dropped.shape[1]] = dropped.to(real.device)
    query, key = torch.arange(length, device=real.device)[:, None], torch.arange(length, device=real.device)[None]
    behind = query >= dropped.shape[1]
    made: dict[tuple[int, bool], tuple[Tensor | None, Tensor]] = {}

    def mask_for(stock: Tensor | None, all_queries: bool, states: Tensor) -> Tensor:
        key_of = id(stock), all_queries
        if key_of not in made:
            if stock is None:
                seen = (key <= query)[None, None]
            else:
                seen = (stock if stock.dtype == torch.bool else stock == 0).to(real.device)
            block = gone[:, None, None] & (torch.ones_like(behind) if all_queries else behind)
            allowed = seen & real[:, None, None] & ~block
            mask = torch.zeros(batch, 1, length, length, dtype=states.dtype, device=real.device)
            made[key_of] = stock, mask.masked_fill_(~allowed, torch.finfo(states.dtype).min)
        return made[key_of][1].to(states.device)

    def before(index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = LayerCall.read(module, args, kwargs)
        return replace(call, mask=mask_for(call.mask, index >= layer, call.states)).write()

    hooks = [
        module.register_forward_pre_hook(lambda m, a, k, i=index: before(i, m, a, k), with_kwargs=True)
        for index, module in enumerate(family_of(model).decoder(model).layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
