"""Static caches: dynamic layers stand in for theirs during a prefill with pictures, which then shrinks like any other.

What is kept goes to the front of the static buffers, and decoding needs no hook of ours: the layers that come back tell
transformers where what they hold stood in the sequence. So its masks and positions fit as they are, compiled or not.
Where rows of a batch kept different numbers of tokens, their mask is completed where generate() makes it, which is not
in the compiled graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, StaticLayer, StaticSlidingWindowLayer

from ptprune.attach.cache import Pruned, PrunedLayer, pruned, removed, seen_by
from ptprune.conventions import CACHE_LENGTH, LONGEST
from ptprune.errors import Refused


class PrunedStaticLayer(Pruned, StaticLayer):
    """A static layer that holds fewer tokens than it has seen, at the front of its buffers.

    ``get_seq_length`` counts the tokens seen. ``get_mask_sizes`` says that the first slot holds the column after the
    removed ones, so that the slots of generated tokens hold the columns of these.

    Attributes:
        windowed: whether the layer is one of a model with sliding windows.
        offset: ``removed`` on the device: a compiled graph reads it there, and is not compiled again for each picture.
    """

    def __init__(self, buffers: StaticLayer, held: PrunedLayer, length: int, windowed: bool) -> None:
        """Takes over the buffers of a layer that has some, else makes new ones of this length; what they hold is what
        the dynamic layer holds."""
        super().__init__(length)
        keys, values = held.keys, held.values
        assert keys is not None
        assert values is not None
        self.offset = torch.zeros((), dtype=torch.long, device=keys.device)
        if buffers.is_initialized:
            self.__dict__.update(buffers.__dict__)
        else:
            self.lazy_initialization(keys, values)
            torch._dynamo.mark_static_address(self.offset)
        self.windowed = windowed
        self.know(held)
        number = keys.shape[2]
        for own, new in ((self.keys, keys), (self.values, values)):
            assert own is not None
            own[:, :, :number] = new
        # in place: compiled graphs know these tensors by their addresses
        self.cumulative_length.fill_(number)
        self.offset.fill_(self.removed)

    def get_seq_length(self) -> Any:
        return self.cumulative_length + self.offset

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        self.check_armed()
        return self.get_max_length(), self.offset if torch.compiler.is_compiling() else self.removed

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            self.shorten(self.left(int(self.cumulative_length), abs(tokens_to_remove)))
            self.cumulative_length.sub_(abs(tokens_to_remove))

    def reset(self) -> None:
        super().reset()
        self.offset.zero_()
        self.forget()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.each_row(lambda state: state[beam_idx.to(state.device)])


def is_static(cache: Any) -> bool:
    """Whether a cache is one of static layers that dynamic ones can stand in for."""
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(
        type(layer) in (StaticLayer, StaticSlidingWindowLayer, PrunedStaticLayer) for layer in layers
    )


class StandIn:
    """Dynamic layers in the place of a static cache's for one prefill.

    Args:
        lengths: of buffers that generate() makes; None: the cache is the caller's.
    """

    def __init__(self, cache: Any, lengths: Lengths | None = None) -> None:
        self.cache, self._layers, self._lengths = cache, cache.layers, lengths
        self._held, self.settled = held_by(cache), False
        cache.layers = [self._dynamic(layer) for layer in self._layers]

    def _dynamic(self, layer: StaticLayer) -> DynamicLayer:
        if not self._held or layer.keys is None or layer.values is None:
            return DynamicLayer()
        keys, values = layer.keys[:, :, : self._held], layer.values[:, :, : self._held]
        if isinstance(layer, PrunedStaticLayer):
            return PrunedLayer.holding(keys, values, layer)
        plain = DynamicLayer()
        plain.lazy_initialization(keys, values)
        plain.keys, plain.values = keys, values
        return plain

    def settle(self, *_: Any) -> None:
        """Forward hook of the language model: static layers again, which hold what the dynamic ones hold now."""
        pairs = zip(self._layers, self.cache.layers, strict=True)
        windowed = any(layer.is_sliding or getattr(layer, "windowed", False) for layer in self._layers)
        self.cache.layers, self.settled = [self._static(old, new, windowed) for old, new in pairs], True

    def _static(self, old: StaticLayer, new: Any, windowed: bool) -> StaticLayer:
        length, lengths = old.get_max_length(), self._lengths
        if isinstance(new, PrunedLayer):
            if lengths is not None:
                length = lengths.pruned(length, new.removed)
            return PrunedStaticLayer(old, new, length, windowed)
        if lengths is not None and not old.is_sliding:
            setattr(old, CACHE_LENGTH, lengths.whole(length))
        old.update(new.keys[:, :, self._held :], new.values[:, :, self._held :])
        return old

    def put_back(self) -> None:
        """After an exception the cache is as it was before. Does nothing after ``settle``."""
        if not self.settled:
            self.cache.layers, self.settled = self._layers, True


def held_by(cache: Any) -> int:
    """The number of tokens that a static cache holds, read from the device."""
    return seen_by(cache) - removed(cache)


def prepared(mask: Any) -> bool:
    """Whether a mask is one that generate() made for static buffers: masks of attention, not of tokens."""
    return isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim == 4)


def needs_pass(cache: Any, mask: Any) -> bool:
    """Whether a pruner has to take part in a forward pass over a pruned static cache, without pictures."""
    first = cache.layers[0]
    return not prepared(mask) and (mask is not None or first.ragged or first.windowed)


@contextmanager
def making_masks(cache: Any) -> Iterator[None]:
    """The layers of a pruned static cache let generate() make masks."""
    for layer in cache.layers:
        layer.armed = True
    try:
        yield
    finally:
        for layer in cache.layers:
            layer.armed = False


def fitting(cache: Any, mask: Tensor | None) -> Tensor | None:
    """The caller's 2D mask over all that was seen, made to fit what a pruned static cache holds: fill is blocked."""
    layer = cache.layers[0]
    if not (layer.ragged or (layer.padded and mask is not None)):
        return mask
    batch, held = layer.columns.shape
    columns = layer.columns
    valid = columns.new_ones(batch, held) if layer.valid is None else layer.valid.to(columns)
    if mask is None:  # what is not written yet is blocked by being later
        new = columns.new_ones(batch, layer.get_max_length() - held)
    else:
        new = mask[:, layer.removed + held :].to(columns)
    # the columns of removed tokens may hold anything: they are never read
    return torch.cat([columns.new_ones(batch, layer.removed), valid, new], dim=1)


class Lengths:
    """How long the buffers are that generate() makes for a call with pictures.

    generate() remembers the longest cache that it made for a model and makes none that is shorter, so that it compiles
    the decoding step once. Pruned caches are remembered here by themselves, because they need less.
    """

    _longest: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def __init__(self, model: nn.Module, given: bool) -> None:
        """
        Args:
            given: whether the caller asked for a length, which is kept to then.
        """
        self._model, self._given = model, given
        self.before: int | None = getattr(model, LONGEST, None)

    def whole(self, needed: int) -> int:
        """The length of a cache that nothing was dropped from."""
        return max(needed, self.before or 0)

    def pruned(self, needed: int, removed: int) -> int:
        """The length of a cache that needs fewer slots by what was removed."""
        if self._given:
            return needed
        length = self._longest[self._model] = max(needed - removed, self._longest.get(self._model, 0))
        return length

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Let generate() make a cache that is as long as this call needs."""
        if self.before is not None:
            setattr(self._model, LONGEST, -1)
        try:
            yield
        finally:
            if self.before is not None:
                setattr(self._model, LONGEST, self.whole(getattr(self._model, LONGEST)))


def check_windows(cache: Any, windows: Sequence[int | None], new: int) -> None:
    """Refuse ``new`` tokens by which a pruned static cache has seen more than a sliding window.

    Raises:
        Refused: naming the window. The masks of its slots would count distances among the tokens that are left.
    """
    window = min((window for window in windows if window is not None), default=None)
    if window is not None and pruned(cache) and (seen := seen_by(cache) + new) > window:
        raise Refused(
            f"a static cache cannot go on past a sliding window of {window} tokens to {seen}: use a dynamic one"
        )
