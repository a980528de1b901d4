"""The yardstick: how far logits of the stock model lie apart where nothing but arithmetic differs.

Sums in another order give other last bits, in half precision many. A pruned model computes on fewer rows, and so sums
in another order too: no more than the stock model's own noise can be asked of it, and no more is granted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ptprune.families.base import Model
from ptprune.verification.prompts import real, with_positions
from ptprune.verification.stock import blocked

FACTOR = 8  # how many times the noise passes: it is the largest of a few samples, not of all
ROUNDING = 256  # in units of the dtype's spacing at the largest logit: what passes where no noise was seen at all


COLUMNS = 256  # of logits that are looked at: a whole prompt's would take gigabytes


def logits(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    """FloatTensor [batch, columns, vocabulary] of one forward pass without a cache: the last columns of the prompt."""
    columns = min(COLUMNS, real(inputs).shape[1])
    with torch.no_grad():
        return model(**with_positions(model, inputs), logits_to_keep=columns).logits.float()


def measure(model: Model, one: dict[str, Tensor], two: dict[str, Tensor] | None) -> dict[str, float]:
    """Largest differences of logits at the prompt's positions.

    Args:
        one: a prompt; ``two``: a batch of which it is the first row, or None where there is none.
    """
    base = logits(model, one)
    found = {}
    if two is not None:
        row = logits(model, two)[0, -base.shape[1] :]  # padding is on the left
        found["batch of one against batch of two"] = (base[0, -len(row) :] - row).abs().max().item()
    own = implementation(model)
    other = "eager" if own != "eager" else "sdpa"
    with attention(model, other):
        found[f"{own} against {other}"] = (base - logits(model, one)).abs().max().item()
    if "flash" not in own:
        nothing = torch.zeros_like(real(one))
        with blocked(model, nothing, real(one), 0):
            found["own mask against an explicit one"] = (base - logits(model, one)).abs().max().item()
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
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own
