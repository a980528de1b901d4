"""Keeps what the vision encoder made of tiles, so that a tile with the same pixels is not encoded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ptprune.errors import SettingError
from ptprune.families.base import Model
from ptprune.settings import is_whole

_names: WeakKeyDictionary[Model, object] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class CachedTile:
    """What the encoder made of a tile.

    Attributes:
        states: place in the encoder's output -> [patches, d].
        attention: name in ``ImageEvidence`` -> FloatTensor [patches].
        groups: int array, the token groups that went through the whole encoder; None: all.
        length: of the encoder's tuple of hidden states.
    """

    states: dict[tuple[str, int | None], Tensor]
    attention: dict[str, Tensor]
    groups: np.ndarray | None
    length: int

    @property
    def bytes(self) -> int:
        """What the tensors take."""
        tensors = [*self.states.values(), *self.attention.values()]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)


class TileCache:
    """Features of tiles, the least recently used of which are forgotten first.

    Several pruners and models may share one, also from several threads: ``pruner(model, tile_cache=cache)``. A tile is
    known by its pixels, the encoder's weights, their dtype and the settings that change what is computed. Weights count
    as changed when PyTorch counts an in-place change of a parameter; it cannot see a change through ``.data``: call
    ``clear`` then. Features are kept on the encoder's device, and without gradients: calls that need gradients do
    without the cache.

    Args:
        max_bytes: the most that the features may take.

    Attributes:
        hits, misses: tiles that were found, and that were not, so far.

    Raises:
        SettingError: if ``max_bytes`` is not a whole number from 1.
    """

    def __init__(self, max_bytes: int) -> None:
        if not is_whole(max_bytes) or max_bytes < 1:
            raise SettingError(f"max_bytes must be a whole number from 1, got {max_bytes!r}")
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._tiles: OrderedDict[Hashable, CachedTile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def bytes(self) -> int:
        """What the features take now."""
        return self._bytes

    def clear(self) -> None:
        """Forget all tiles."""
        with self._lock:
            self._tiles.clear()
            self._bytes = 0

    def get(self, key: Hashable) -> CachedTile | None:
        """What is known of a tile, which becomes the one that was used last."""
        with self._lock:
            found = self._tiles.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._tiles.move_to_end(key)
            return found

    def put(self, key: Hashable, tile: CachedTile) -> None:
        """Remember a tile. One that is larger than the whole cache is not."""
        if tile.bytes > self.max_bytes:
            return
        with self._lock:
            if (old := self._tiles.pop(key, None)) is not None:
                self._bytes -= old.bytes
            self._tiles[key] = tile
            self._bytes += tile.bytes
            while self._bytes > self.max_bytes:
                _, forgotten = self._tiles.popitem(last=False)
                self._bytes -= forgotten.bytes


def identity(tower: Model) -> Hashable:
    """Equal for the same module with the same weights, and for nothing else."""
    name = _names.setdefault(tower, object())
    weights = [*tower.parameters(), *tower.buffers()]
    versions = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)
    return name, versions, str(tower.dtype), str(tower.config._attn_implementation)


def fingerprints(pixels: Tensor) -> Tensor:
    """Two numbers for each tile: LongTensor [tiles, 2], equal for equal pixels.

    Each is a sum over the pixels' bits times secret random weights, modulo 2**64. Two tiles that differ have equal ones
    with a probability of at most 2**-64, whoever made them: the weights are drawn anew in each process.
    """
    bits = pixels.detach().flatten(1)
    bits = bits.view({1: torch.uint8, 2: torch.int16}.get(bits.element_size(), torch.int32))
    return torch.stack([(bits * weights).sum(dim=1) for weights in _secret(bits.shape[1], bits.device)], dim=1)


@lru_cache(maxsize=8)
def _secret(length: int, device: torch.device) -> Sequence[Tensor]:
    generator = torch.Generator()
    generator.seed()
    low, high = -(2**63), 2**63 - 1
    return [torch.randint(low, high, (length,), generator=generator).to(device) for _ in range(2)]
