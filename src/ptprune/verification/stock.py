"""The stock model: how far its logits lie apart where nothing but arithmetic differs, and what it says where it is made
to ignore tokens.

Sums in another order give other last bits, in half precision many. A pruned model computes on fewer rows, and so sums
in another order too: no more than the stock model's own noise can be asked of it, and no more is granted.

The oracle shares no code with the cut. Every decoder layer gets a 4D mask that blocks positions besides what it blocks
anyway. No cache is used: every call sees the whole sequence, so there is nothing to shorten and nothing to go wrong in
the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ptprune.conventions import POSITIONS, LayerCall
from ptprune.families import family_of
from ptprune.families.base import Model
from ptprune.verification.prompts import real

FACTOR = 8  # how many times the noise passes: it is the largest of a few samples, not of all
ROUNDING = 256  # in units of the dtype's spacing at the largest logit: what passes where no noise was seen at all
COLUMNS = 256  # of logits that are looked at: a whole prompt's would take gigabytes


def logits(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    """FloatTensor [batch, columns, vocabulary] of one forward pass without a cache: the last columns of the prompt."""
    valid = real(inputs)
    if not family_of(model).grid_positions:  # else the model counts by itself as generate() does, past the padding
        inputs = {**inputs, POSITIONS: (valid.long().cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        return model(**inputs, logits_to_keep=min(COLUMNS, valid.shape[1])).logits.float()


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return (one - other).abs().max().item()


def measure(model: Model, one: dict[str, Tensor], two: dict[str, Tensor] | None) -> dict[str, float]:
    """Largest differences of logits at a prompt's positions; ``two``: a batch of which it is the first row, or None."""
    base = logits(model, one)
    found = {}
    if two is not None:
        row = logits(model, two)[0, -base.shape[1] :]  # padding is on the left
        found["batch of one against batch of two"] = apart(base[0, -len(row) :], row)
    own = implementation(model)
    other = "eager" if own != "eager" else "sdpa"
    with attention(model, other):
        found[f"{own} against {other}"] = apart(base, logits(model, one))
    if "flash" not in own:
        with blocked(model, torch.zeros_like(real(one)), real(one), 0):
            found["own mask against an explicit one"] = apart(base, logits(model, one))
    return found


def bound(noise: dict[str, float], reference: Tensor, dtype: torch.dtype) -> float:
    """The largest difference from ``reference`` that passes."""
    smallest = ROUNDING * torch.finfo(dtype).eps * reference.abs().max().item()
    if dtype != torch.float32 and dtype != torch.float64:
        smallest /= 64  # half precision shows its noise; one unit is a lot
    return max(FACTOR * max(noise.values(), default=0.0), smallest)


def implementation(model: Model) -> str:
    """The language model's attention implementation."""
    return str(model.config.get_text_config()._attn_implementation)


@contextmanager
def attention(model: Model, name: str) -> Iterator[None]:
    """Another attention implementation for a while; every part gets its own back."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values()
    before = [(config, config._attn_implementation) for config in configs]
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own


@contextmanager
def blocked(model: Model, dropped: Tensor, real: Tensor, layer: int) -> Iterator[None]:
    """Block dropped positions: for all queries in the layers from ``layer`` on, and in every layer for queries behind
    the prompt, which never saw them.

    Args:
        dropped: BoolTensor [batch, prompt].
        real: BoolTensor [batch, length], False on padding; length is that of the calls to come.
    """
    gone = torch.zeros_like(real)
    gone[:, : dropped.shape[1]] = dropped.to(real.device)
    key = torch.arange(real.shape[1], device=real.device)
    query = key[:, None]
    behind = query >= dropped.shape[1]
    made: dict[tuple[int, bool], tuple[Tensor | None, Tensor]] = {}

    def mask_for(stock: Tensor | None, all_queries: bool, states: Tensor) -> Tensor:
        key_of = id(stock), all_queries
        if key_of not in made:
            seen = key <= query if stock is None else stock if stock.dtype == torch.bool else stock == 0
            block = gone[:, None, None] & (behind | all_queries)
            allowed = seen.to(real.device) & real[:, None, None] & ~block
            mask = torch.zeros(allowed.shape, dtype=states.dtype, device=real.device)
            made[key_of] = stock, mask.masked_fill_(~allowed, torch.finfo(states.dtype).min)
        return made[key_of][1].to(states.device)

    def before(index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = LayerCall.read(module, args, kwargs)
        return replace(call, mask=mask_for(call.mask, index >= layer, call.states)).write()

    with ExitStack() as hooks:
        for index, module in enumerate(family_of(model).decoder(model).layers):
            hook = module.register_forward_pre_hook(functools.partial(before, index), with_kwargs=True)
            hooks.callback(hook.remove)
        yield
