"""The models of the page: loaded when first asked for, and at most two at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

import torch

from ptprune.asking.loaded import LoadedModel
from ptprune.checkpoints import Checkpoint
from ptprune.checkpoints.checkpoint import SHIPPED
from ptprune.checkpoints.processor import tile_options
from ptprune.errors import UserError

MOST = 2  # models in memory: the one in use and the one before


@dataclass
class Models:
    """Loads models by name. Not for several threads at a time.

    Attributes:
        offered: names that visitors may choose, the first by default.
        any_name: whether visitors may give any other directory or name on the Hub: for a page on one's own machine.
        device, dtype: where and how they are loaded.
    """

    offered: tuple[str, ...] = (SHIPPED,)
    any_name: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "auto"
    _loaded: OrderedDict[str, tuple[str, LoadedModel]] = field(default_factory=OrderedDict)

    def check(self, name: str) -> None:
        """Raises UserError for a model that visitors may not choose."""
        if name not in self.offered and not self.any_name:
            raise UserError(f"model: this page offers {', '.join(self.offered)}; start your own for another")

    def has(self, name: str) -> bool:
        """Whether a model is in memory."""
        return name in self._loaded

    def get(self, name: str, max_tiles: int | None) -> LoadedModel:
        """The model, cutting pictures into at most ``max_tiles`` tiles (None: as many as its checkpoint says).

        Raises:
            UserError, SettingError: where there is none, or it has no choice of tiles.
        """
        self.check(name)
        if name not in self._loaded:
            checkpoint = Checkpoint.find(name)
            while len(self._loaded) >= MOST:
                self._loaded.popitem(last=False)
            self._loaded[name] = checkpoint.family.name, LoadedModel.load(checkpoint, self.device, self.dtype)
        self._loaded.move_to_end(name)
        family, loaded = self._loaded[name]
        return replace(loaded, image_options=tile_options(family, loaded.processor, max_tiles))
