"""Sliding windows: layers that see only so far back. Distances count in the unpruned sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ptprune.errors import Refused


def unslide(cache: Any) -> list[tuple[int, DynamicSlidingWindowLayer]]:
    """Let the cache's sliding layers hold everything for one prefill, so that all layers can be cut alike. Returns the
    layers that were replaced, for ``slide``."""
    replaced = [(i, layer) for i, layer in enumerate(cache.layers) if isinstance(layer, DynamicSlidingWindowLayer)]
    for index, layer in replaced:
        plain = cache.layers[index] = DynamicLayer()
        if layer.keys is not None and layer.values is not None:
            plain.lazy_initialization(layer.keys, layer.values)
            plain.keys, plain.values = layer.keys, layer.values
    return replaced


def slide(cache: Any, replaced: list[tuple[int, DynamicSlidingWindowLayer]]) -> None:
    """Where nothing was cut, the sliding layers take over again what was added meanwhile."""
    for index, layer in replaced:
        plain = cache.layers[index]
        past = layer.get_seq_length()
        layer.update(plain.keys[:, :, past:], plain.values[:, :, past:])
        cache.layers[index] = layer


def restrict(
    mask: Tensor | None, window: int, query_columns: Tensor, key_columns: Tensor, key_valid: Tensor, implementation: str
) -> Tensor:
    """The mask of a sliding layer over a pruned cache: the stock one counts distances among the tokens that are left,
    so it lets through too much.

    Args:
        mask: None (causal), or [batch, 1, queries, keys], boolean or additive.
        query_columns, key_columns: LongTensor [batch, queries], [batch, keys], where they stood in the sequence.
        key_valid: BoolTensor [batch, keys].

    Raises:
        Refused: under flash attention, which counts distances itself.
    """
    if "flash" in implementation:
        raise Refused(
            f"{implementation} cannot apply a sliding window of {window} to a pruned prompt that is longer: use 'sdpa'"
        )
    distance = query_columns[:, None, :, None] - key_columns[:, None, None]
    if mask is None:
        return (distance >= 0) & (distance < window) & key_valid[:, None, None]
    near = (distance < window).to(mask.device)
    return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)
