"""A KV cache from which tokens were dropped, with the interface that the rest of transformers expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ptprune.attach.cut import Cut
from ptprune.errors import AttachError, Refused


class Pruned:
    """What a layer of a cache knows of the tokens that were dropped from it.

    Attributes:
        removed: tokens seen but not held, the same for every row.
        valid: BoolTensor [batch, held at the last cut]; False on padding and on fill; None: all are real.
        columns: LongTensor [batch, held at the last cut], where those stood in the sequence.
        shift: LongTensor [batch], how far this layer's position ids lie behind the original ones (compact positions).
        shifted, ragged: whether any ``shift`` is not zero, any ``valid`` is False.
        padded: whether rows were filled up, or the mask of what was seen has zeros.
        armed: set by an attached pruner for one forward pass.
    """

    removed: int
    valid: Tensor | None
    columns: Tensor
    shift: Tensor
    shifted: bool
    ragged: bool
    padded: bool
    armed: bool
    _cut: Cut | None

    def know(self, other: Pruned) -> None:
        """Know what another layer knows."""
        self.removed, self.valid, self.columns, self._cut = other.removed, other.valid, other.columns, other._cut
        self.shift, self.shifted, self.ragged, self.padded = other.shift, other.shifted, other.ragged, other.padded
        self.armed = False

    def forget(self) -> None:
        """Nothing was dropped, and nothing was seen."""
        self.removed, self._cut, self.ragged, self.shifted = 0, None, False, False
        self.padded = False
        self.valid, self.columns, self.shift = None, self.columns[:, :0], torch.zeros_like(self.shift)

    @property
    def floor(self) -> int:
        """How many of the held tokens cannot be taken back, because tokens were dropped between them."""
        return 0 if self._cut is None else self._cut.floor

    def check_armed(self) -> None:
        """Raise ``AttachError`` where a pruner has to take part in a call, and takes none."""
        if (self.ragged or self.shifted) and not self.armed:
            raise AttachError(
                "this cache was pruned with padding or compact positions: continue it with the pruner attached "
                "(inside the `with` block), and for compact positions with the same `layer`"
            )

    def left(self, held: int, number: int) -> int:
        """How many of the held tokens are left after the last ``number`` were taken back.

        Raises:
            Refused: if the floor lies higher.
        """
        if held - number < self.floor:
            raise Refused(f"cannot crop {number} tokens: only the last {held - self.floor} came after the dropped ones")
        return held - number

    def shorten(self, left: int) -> None:
        """Know nothing of tokens that were taken back."""
        self.each_row(lambda state: state[:, :left] if state.ndim > 1 else state)

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        self.valid = None if self.valid is None else change(self.valid)
        self.columns, self.shift = change(self.columns), change(self.shift)


class PrunedLayer(Pruned, DynamicLayer):
    """A dynamic layer that holds fewer tokens than it has seen.

    ``get_seq_length`` counts the tokens seen, so that generate(), hand-written loops and position ids continue as if
    nothing had been dropped. ``get_mask_sizes`` counts the tokens held.
    """

    def __init__(self, layer: Any, removed: int, cut: Cut, shift: Tensor, shifted: bool) -> None:
        super().__init__()
        self._hold(layer.keys, layer.values)
        self.removed = removed
        self.valid = cut.key_valid
        self.columns = cut.key_columns
        self.shift, self.shifted = shift, shifted
        self.ragged = cut.ragged
        self.padded = cut.ragged or cut.before.valid is not None or getattr(layer, "padded", False)
        self.armed = False
        self._cut = cut

    @classmethod
    def holding(cls, keys: Tensor, values: Tensor, known: Pruned) -> PrunedLayer:
        """A layer that holds what another one held, and knows what it knows."""
        layer = cls.__new__(cls)
        DynamicLayer.__init__(layer)
        layer._hold(keys, values)
        layer.know(known)
        return layer

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        # what lazy_initialization sets; it would make two empty tensors on the device
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.check_armed()
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return super().get_seq_length() + self.removed

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return super().get_seq_length() + query_length, self.removed

    def crop(self, tokens_to_remove: int) -> None:
        left = self.left(super().get_seq_length(), abs(tokens_to_remove))
        super().crop(tokens_to_remove)
        self.shorten(left)

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.forget()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.each_row(lambda state: state[beam_idx.to(state.device)])

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.each_row(lambda state: state[indices.to(state.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.each_row(lambda state: state.repeat_interleave(repeats, dim=0))


def seen_by(cache: Any) -> int:
    """The number of tokens that the cache has seen. Of a static cache it is read from the device."""
    return 0 if cache is None else int(cache.get_seq_length())


def removed(cache: Any) -> int:
    """The number of tokens that the cache has seen and no longer holds."""
    return cache.layers[0].removed if pruned(cache) else 0


def pruned(cache: Any) -> bool:
    """Whether tokens were dropped from this cache."""
    return bool(cache is not None and cache.layers and isinstance(cache.layers[0], Pruned))


def check_length(cache: Any, attention_mask: Tensor | None, new: int) -> None:
    """Refuse a 2D mask that does not cover all seen and ``new`` tokens.

    Raises:
        Refused: naming the lengths.
    """
    seen = seen_by(cache) if attention_mask is not None else 0
    if attention_mask is not None and attention_mask.shape[1] != seen + new:
        raise Refused(
            f"attention_mask has {attention_mask.shape[1]} columns, but {seen} tokens were seen before and {new} are "
            f"new: pass a mask of {seen + new} columns"
        )


def key_mask(cache: Any, attention_mask: Tensor | None, batch: int, new: int, device: torch.device) -> Tensor:
    """BoolTensor [batch, held + new], True on the real keys of the coming forward pass.

    Args:
        attention_mask: the caller's 2D mask over all seen and ``new`` tokens, or None for all ones.

    """
    if attention_mask is None:
        seen = seen_by(cache)
        attention_mask = torch.ones(batch, seen + new, dtype=torch.bool, device=device)
    mask = attention_mask.to(device=device, dtype=torch.bool)
    if not pruned(cache):
        return mask
    layer = cache.layers[0]
    held = layer.columns.shape[1]
    valid = mask.new_ones(batch, held) if layer.valid is None else layer.valid.to(device)
    return torch.cat([valid, mask[:, layer.removed + held :]], dim=1)


def key_columns(cache: Any, batch: int, new: int, device: torch.device) -> Tensor:
    """LongTensor [batch, held + new]: columns of the coming forward pass's keys in the unpruned sequence."""
    seen = seen_by(cache)
    columns = torch.arange(seen + new, device=device).expand(batch, -1)
    if not pruned(cache):
        return columns
    held = cache.layers[0].columns.to(device)
    return torch.cat([held, columns[:, removed(cache) + held.shape[1] :]], dim=1)


def gather_new(layer: Any, cut: Cut) -> None:
    """Keep a layer's old tokens, and of its new ones those that the cut keeps."""
    past, index = cut.past, cut.index.to(layer.keys.device)
    for name in ("keys", "values"):
        states = getattr(layer, name)
        new = states[:, :, past:] if past else states
        if len(index) == 1:
            new = new.index_select(2, cut.row.to(states.device))
        else:
            new = new.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
        setattr(layer, name, torch.cat([states[:, :, :past], new], dim=2) if past else new)


def mark_pruned(cache: Any, removed: int, cut: Cut, shifts: Sequence[tuple[Tensor, bool]]) -> None:
    """Turn the layers of a cache, already cut, into pruned ones.

    Args:
        removed: tokens seen and no longer held, in all.
        shifts: of each layer, and whether any of it is not zero.
    """
    cache.layers = [PrunedLayer(layer, removed, cut, *each) for layer, each in zip(cache.layers, shifts, strict=True)]
