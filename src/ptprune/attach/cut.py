"""Cuts a prefill: chooses the columns of a padded batch that stay and cuts a decoder layer's arguments to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ptprune.conventions import MASK, LayerCall


@dataclass(frozen=True, eq=False)
class Cut:
    """The columns of a prefill that the layers from the cut on see.

    Rows of a batch lose different numbers of tokens, so shorter rows are filled up with columns that nothing attends
    to (padding first, as it is leftmost). The last column always stays, because generate() reads its logits.

    Attributes:
        index: LongTensor [batch, kept], increasing columns of the prefill.
        valid: BoolTensor [batch, kept], False on fill and padding.
        dropped: BoolTensor [batch, length], the dropped visual tokens.
        past_valid: BoolTensor [batch, past], the real tokens among those that the cache held before.
        columns: LongTensor [batch, past + length], each key's column in the unpruned sequence.
    """

    index: Tensor
    valid: Tensor
    dropped: Tensor
    past_valid: Tensor
    columns: Tensor

    @classmethod
    def of(cls, valid: Tensor, dropped: Tensor, past_valid: Tensor, columns: Tensor) -> Cut:
        """The shortest cut of a prefill [batch, length] that keeps every valid column that is not dropped."""
        real = valid & ~dropped
        keep = real.clone()
        keep[:, -1] = True
        counts = keep.sum(1)
        length = int(counts.max())
        fill = ~keep & ((~keep).cumsum(1) <= (length - counts)[:, None])
        index = (keep | fill).nonzero()[:, 1].view(len(valid), length)
        return cls(index, real.gather(1, index), dropped, past_valid, columns)

    def then(self, later: Cut) -> Cut:
        """Combine this cut with a later one of the columns that it left."""
        dropped = self.dropped.scatter(1, self.index, self.dropped.gather(1, self.index) | later.dropped)
        return Cut(self.index.gather(1, later.index), later.valid, dropped, self.past_valid, self.columns)

    def find(self, row: int, columns: Tensor) -> Tensor:
        """The new places of a row's kept columns."""
        return torch.searchsorted(self.index[row], columns)

    @property
    def length(self) -> int:
        return self.dropped.shape[1]

    @property
    def removed(self) -> int:
        return self.length - self.index.shape[1]

    @cached_property
    def dropped_before(self) -> Tensor:
        """LongTensor [batch, kept]: how many dropped tokens stood before each kept column."""
        return self.states(self.dropped.cumsum(dim=1))

    @cached_property
    def floor(self) -> int:
        """Held tokens, including old ones, up to the last place where a row lost a token."""
        columns = torch.arange(self.length, device=self.dropped.device)
        last = torch.where(self.dropped, columns, -1).amax(dim=1, keepdim=True)
        return self.past_valid.shape[1] + int((self.index <= last).sum(dim=1).max())

    @cached_property
    def key_valid(self) -> Tensor:
        """BoolTensor [batch, past + kept]."""
        return torch.cat([self.past_valid, self.valid], dim=1)

    @cached_property
    def key_columns(self) -> Tensor:
        """LongTensor [batch, past + kept], each remaining key's column in the unpruned sequence."""
        past = self.past_valid.shape[1]
        return torch.cat([self.columns[:, :past], self.columns[:, past:].gather(1, self.index)], dim=1)

    @cached_property
    def ragged(self) -> bool:
        return not bool(self.key_valid.all())

    def states(self, states: Tensor) -> Tensor:
        """[batch or 1, length, ...] -> [batch, kept, ...]."""
        return take(states, self.index)

    def mask(self, mask: Tensor | None, implementation: str, device: torch.device) -> Tensor | None:
        """Cut a layer's attention mask in both directions and block the fill.

        Args:
            mask: None (causal), [batch, keys] or [batch or 1, 1, length, past + length], boolean or additive.
            implementation: the model's attention implementation, which decides the form of the mask.
        """
        if mask is None or mask.ndim == 2:
            if not self.ragged:
                return None
            key_valid = self.key_valid.to(device)
            if "flash" in implementation:
                return key_valid
            assert implementation == "sdpa", "eager attention always has a mask"
            rows, past = self.index.shape[1], self.past_valid.shape[1]
            causal = torch.ones(rows, past + rows, dtype=torch.bool, device=device).tril(past)
            return causal & key_valid[:, None, None]
        past = mask.shape[-1] - self.length
        index, key_valid = self.index.to(mask.device), self.key_valid.to(mask.device)
        columns = torch.cat([torch.arange(past, device=mask.device).expand(len(index), -1), index + past], dim=1)
        mask = mask.expand(len(index), -1, -1, -1)
        mask = mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        mask = mask.gather(3, columns[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
        blocked = ~key_valid[:, None, None]
        return mask & ~blocked if mask.dtype == torch.bool else mask.masked_fill(blocked, torch.finfo(mask.dtype).min)

    def restore(self, states: Tensor) -> Tensor:
        """[batch, kept, d] -> [batch, length, d], zeros on dropped columns, so that outputs have the prompt's shape."""
        index = self.index.to(states.device)
        written = self.valid.to(states.device) | (index == self.length - 1)
        rows = (index + torch.arange(len(index), device=index.device)[:, None] * self.length)[written]
        full = states.new_zeros(len(index) * self.length, states.shape[-1])
        return full.index_copy(0, rows, states[written]).view(len(index), self.length, -1)


class Memo:
    """Caches results of one forward pass by the identity of their inputs, because layers share masks and positions."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def __call__(self, inputs: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        key = tuple(map(id, inputs))
        if key not in self._results:
            self._results[key] = (inputs, compute())  # hold the inputs, so that Python cannot reuse their ids
        return self._results[key][1]


def cut_layer_call(cut: Cut, call: LayerCall, implementation: str, once: Callable[..., Any]) -> LayerCall:
    """Cut all arguments of a decoder layer except its hidden states; ``once`` shares the work between layers."""
    mask, positions, rotary = call.mask, call.positions, call.rotary
    if MASK in call.names:
        call = replace(call, mask=once((cut, mask), lambda: cut.mask(mask, implementation, cut.index.device)))
    if positions is not None:
        call = replace(call, positions=once((cut, positions), lambda: cut.states(positions)))
    if rotary is not None:
        index = cut.index
        call = replace(call, rotary=once((cut, rotary), lambda: tuple(take_embedding(part, index) for part in rotary)))
    return call


def take(states: Tensor, index: Tensor) -> Tensor:
    """[batch or 1, length, ...] and columns [batch, kept] -> [batch, kept, ...]."""
    index = index.to(states.device)
    if len(states) > 1:
        index = index + torch.arange(len(states), device=index.device)[:, None] * states.shape[1]
    # index_select of whole rows is many times faster than gather() on a CPU
    return states.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, *states.shape[2:])


def take_embedding(embedding: Tensor, index: Tensor) -> Tensor:
    """``take`` for [batch, length, d], or [3, batch, length, d] if time, row and column are rotated separately."""
    return take(embedding, index) if embedding.ndim == 3 else torch.stack([take(part, index) for part in embedding])


def cut_features(cut: Cut, visual: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a mask of visual tokens [batch, length] and their features [visual tokens, d]."""
    number = (visual.flatten().cumsum(0) - 1).view(visual.shape)
    kept = cut.states(visual)
    return kept, features[cut.states(number)[kept].to(features.device)]
