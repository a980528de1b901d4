"""The end of a pass: checks that every layer ran and that the cache fits, and computes how far positions moved."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptprune.attach.cache import pruned
from ptprune.attach.cut import Cut, Memo
from ptprune.attach.setup import Setup
from ptprune.errors import BrokenPass


def check_end(setup: Setup, past: int, next_layer: int, length: int, states: Tensor, cache: Any) -> None:
    """Check that every layer ran, and that every cache layer holds exactly the old tokens and the kept ones.

    Args:
        past: tokens that the cache held before.
        next_layer: the layer expected next.
        length: columns that the cuts left.
        states: [batch, columns, d], the language model's output.

    Raises:
        BrokenPass: if not.
    """
    layers = len(setup.layers)
    if next_layer != layers:
        raise BrokenPass(f"only {next_layer} of {layers} language model layers were called through their hooks")
    if states.shape[1] != length:
        raise BrokenPass(f"the language model returned {states.shape[1]} hidden states, not {length}")
    if cache is None:
        return
    held = past + length
    found = [layer.keys.shape[2] if layer.keys is not None else 0 for layer in cache.layers]
    if len(found) != layers or any(number != held for number in found):
        raise BrokenPass(
            f"the cache's {len(found)} layers hold {sorted({*found})} tokens; each of {layers} has to hold {held}"
        )


def shifts(cache: Any, cuts: Sequence[tuple[int, Cut]], compact: bool, memo: Memo) -> list[tuple[Tensor, bool]]:
    """For each layer a LongTensor [batch]: how far its position ids lie behind the original ones after this pass, and
    whether they do at all.

    Args:
        cuts: of this pass, at least one: from which layer on, and all that was dropped up to it.
        memo: shares one tensor between many layers.
    """
    index = cuts[0][1].index
    none = torch.zeros(len(index), dtype=torch.long, device=index.device)
    before = [(layer.shift, layer.shifted) if pruned(cache) else (none, False) for layer in cache.layers]
    after = list(before)
    for first, cut in cuts if compact else ():
        dropped = cut.dropped.sum(dim=1)
        for layer in range(first, len(after)):
            inputs = before[layer][0], dropped
            after[layer] = memo(inputs, functools.partial(torch.add, *inputs)), True
    return after
