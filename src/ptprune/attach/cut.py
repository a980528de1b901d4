"""Cuts a prefill: chooses the columns of a padded batch that stay and cuts a decoder layer's arguments to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptprune.conventions import MASK, LayerCall
from ptprune.upload import upload


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a prefill before a cut, behind those that the cache holds ("past").

    Attributes:
        stays: BoolTensor [batch, length], what no method may drop: text, newlines, and each row's last column, because
            generate() reads its logits.
        counts: how many of ``stays`` each row has, on the host.
        valid: BoolTensor [batch, length], False on padding; None: all are real.
        end_valid: whether every row's last column is real.
        past: tokens that the cache holds.
        past_valid: BoolTensor [batch, past], False on padding; None: all are real.
        key_columns: LongTensor [batch, past + length], the keys' columns in the unpruned sequence; None: as they stand.
    """

    stays: Tensor
    counts: list[int]
    valid: Tensor | None
    end_valid: bool
    past: int
    past_valid: Tensor | None
    key_columns: Tensor | None

    @property
    def length(self) -> int:
        return self.stays.shape[1]

    @property
    def key_valid(self) -> Tensor | None:
        """BoolTensor [batch, past + length]; None: all are real."""
        return _joined(self.past_valid, self.past, self.valid, self.length)


def _joined(past_valid: Tensor | None, past: int, valid: Tensor | None, length: int) -> Tensor | None:
    """Which of the old and the new keys are real; None: all."""
    known = valid if past_valid is None else past_valid
    if known is None or not past:
        return valid
    ones = known.new_ones
    old = ones(len(known), past) if past_valid is None else past_valid
    return torch.cat([old, ones(len(known), length) if valid is None else valid], dim=1)


@dataclass(frozen=True, eq=False)
class Cut:
    """The columns of a prefill that the layers from the cut on see.

    Rows of a batch lose different numbers of tokens, so shorter rows are filled up with columns that nothing attends
    to (padding first, as it is leftmost).

    Attributes:
        before: the columns that were cut.
        index: LongTensor [batch, kept], increasing columns of ``before``.
        valid: BoolTensor [batch, kept], False on fill and padding; None: all are real.
    """

    before: Columns
    index: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, columns: Columns, kept: Tensor, counts: Sequence[int]) -> Cut:
        """The shortest cut that keeps what stays and what was chosen. Its size is known, so that nothing is read.

        Args:
            kept: LongTensor, ``row * length + column`` of every chosen visual token.
            counts: how many visual tokens of each row are kept.
        """
        totals = [stay + chosen for stay, chosen in zip(columns.counts, counts, strict=True)]
        length = max(totals)
        stays = columns.stays.clone()
        stays.view(-1).index_fill_(0, kept, True)
        gone = ~stays
        if filled := min(totals) < length:
            fill = upload(np.array([[length - total] for total in totals]), gone.device)
            gone &= gone.cumsum(1) > fill
        index = gone.sort(dim=1, stable=True).indices[:, :length]
        if columns.end_valid and not filled:
            return cls(columns, index, None)
        real = stays if columns.valid is None else stays & columns.valid
        return cls(columns, index, real.gather(1, index))

    def then(self, later: Cut) -> Cut:
        """Combine this cut with a later one of the columns that it left."""
        return Cut(self.before, self.index.gather(1, later.index), later.valid)

    @property
    def after(self) -> Columns:
        """The columns that are left."""
        before = self.before
        return Columns(
            self.states(before.stays),
            before.counts,
            self.valid,
            before.end_valid,
            before.past,
            before.past_valid,
            self.key_columns,
        )

    def find(self, row: int, columns: Tensor) -> Tensor:
        """The new places of a row's kept columns."""
        return torch.searchsorted(self.index[row], columns)

    @property
    def past(self) -> int:
        return self.before.past

    @property
    def length(self) -> int:
        return self.before.length

    @property
    def removed(self) -> int:
        return self.length - self.index.shape[1]

    @cached_property
    def dropped(self) -> Tensor:
        """BoolTensor [batch, length], the dropped visual tokens."""
        kept = torch.zeros_like(self.before.stays)
        kept = kept.scatter_(1, self.index, True if self.valid is None else self.valid)
        return ~kept if self.before.valid is None else ~kept & self.before.valid

    @cached_property
    def dropped_before(self) -> Tensor:
        """LongTensor [batch, kept]: how many dropped tokens stood before each kept column."""
        return self.states(self.dropped.cumsum(dim=1))

    @cached_property
    def floor(self) -> int:
        """Held tokens, including old ones, up to the last place where a row lost a token."""
        columns = torch.arange(self.length, device=self.dropped.device)
        last = torch.where(self.dropped, columns, -1).amax(dim=1, keepdim=True)
        return self.past + int((self.index <= last).sum(dim=1).max())

    @cached_property
    def key_valid(self) -> Tensor | None:
        """BoolTensor [batch, past + kept]; None: all are real."""
        return _joined(self.before.past_valid, self.past, self.valid, self.index.shape[1])

    @cached_property
    def key_columns(self) -> Tensor:
        """LongTensor [batch, past + kept], each remaining key's column in the unpruned sequence."""
        columns, past = self.before.key_columns, self.past
        if columns is None:
            if not past:
                return self.index
            old = torch.arange(past, device=self.index.device).expand(len(self.index), -1)
            return torch.cat([old, self.index + past], dim=1)
        return torch.cat([columns[:, :past], columns[:, past:].gather(1, self.index)], dim=1)

    @property
    def ragged(self) -> bool:
        """Whether any key is padding or fill."""
        return self.valid is not None or self.before.past_valid is not None

    @cached_property
    def row(self) -> Tensor:
        """LongTensor [kept], the only row of ``index``."""
        return self.index[0]

    def states(self, states: Tensor) -> Tensor:
        """[batch or 1, length, ...] -> [batch, kept, ...]."""
        if len(self.index) == 1:
            return states.index_select(1, self.row.to(states.device))
        return take(states, self.index)

    def embedding(self, embedding: Tensor) -> Tensor:
        """[batch, length, d] -> [batch, kept, d], with a first dimension of 3 if time, row and column are separate."""
        if len(self.index) == 1:
            return embedding.index_select(-2, self.row.to(embedding.device))
        return take_embedding(embedding, self.index)

    def mask(self, mask: Tensor | None, implementation: str, device: torch.device) -> Tensor | None:
        """Cut a layer's attention mask in both directions and block the fill.

        Args:
            mask: None (causal), [batch, keys] or [batch or 1, 1, length, past + length], boolean or additive.
            implementation: the model's attention implementation, which decides the form of the mask.
        """
        real = None if self.key_valid is None else self.key_valid.to(device if mask is None else mask.device)
        if mask is None or mask.ndim == 2:
            if real is None or "flash" in implementation:
                return real
            assert implementation == "sdpa", "eager attention always has a mask"
            rows, past = self.index.shape[1], self.past
            causal = torch.ones(rows, past + rows, dtype=torch.bool, device=device).tril(past)
            return causal & real[:, None, None]
        past = mask.shape[-1] - self.length
        index = self.index.to(mask.device)
        columns = torch.cat([torch.arange(past, device=mask.device).expand(len(index), -1), index + past], dim=1)
        mask = mask.expand(len(index), -1, -1, -1)
        mask = mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        mask = mask.gather(3, columns[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
        if real is None:
            return mask
        blocked = ~real[:, None, None]
        return mask & ~blocked if mask.dtype == torch.bool else mask.masked_fill(blocked, torch.finfo(mask.dtype).min)

    def restore(self, states: Tensor) -> Tensor:
        """[batch, kept, d] -> [batch, length, d], zeros on dropped columns, so that outputs have the prompt's shape."""
        index = self.index.to(states.device)
        if self.valid is not None:
            written = self.valid.to(states.device) | (index == self.length - 1)
            states = states.masked_fill(~written[..., None], 0.0)
        full = states.new_zeros(len(index), self.length, states.shape[-1])
        if len(index) == 1:
            return full.index_copy_(1, self.row.to(states.device), states)
        return full.scatter_(1, index[..., None].expand_as(states), states)


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
        call = replace(call, rotary=once((cut, rotary), lambda: tuple(map(cut.embedding, rotary))))
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
