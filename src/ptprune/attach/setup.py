"""What a pruner and a model are to each other: everything that is known before the first call, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from ptprune.attach import refusals
from ptprune.attach.contract import check_contract
from ptprune.attach.tile_cache import TileCache
from ptprune.clock import Clock
from ptprune.conventions import layer_windows
from ptprune.families import family_of
from ptprune.families.base import Encoder, Family, Model
from ptprune.report import PruningReport
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


class Method(Protocol):
    """The part of ``TokenPruner`` that attaching needs; nothing here depends on that class."""

    positions: str
    window: int | None
    tiles: str | int
    tile_threshold: float
    tile_score: str
    left_out: str
    tile_batch: int | None
    vision_layer: int | None
    vision_margin: float
    vision_floor: float

    @property
    def leaves_out(self) -> bool: ...
    @property
    def encodes_apart(self) -> bool: ...
    @property
    def needs_grids(self) -> bool: ...
    def num_kept(self, num_tokens: int) -> int: ...
    def keeps_rest(self, num_left: int, num_tokens: int) -> bool: ...

    def cut_layers(self, num_layers: int) -> tuple[int, ...]: ...
    @property
    def needs(self) -> frozenset[str]: ...
    def check_needs(self) -> None: ...
    def keeps_all(self, num_tokens: int | None = None) -> bool: ...
    def hold(self, models: int) -> None: ...
    def select_all(self, images: Sequence[ImageEvidence]) -> list[Selection]: ...
    def forget(self) -> None: ...
    def record(self, write: Callable[[], PruningReport], heavy: bool = False) -> None: ...


@dataclass(frozen=True, eq=False)
class Setup:
    """A pruner's settings applied to a model. Holds nothing of any call.

    Attributes:
        layers: the language model's, in order.
        cut_layers: before which of them tokens are dropped, increasing.
        needs: what the method and its scores want to know, names in ``ImageEvidence``; nothing where all is kept.
        keeps_all: whether every token of any image stays.
        windows: how far back each layer sees, see ``layer_windows``.
        text_config: the language model's configuration; looking it up takes as long as a small operation.
        encoder: what the tiles are encoded by, where that is not left to the model.
    """

    pruner: Method
    model: Model
    family: type[Family]
    layers: Any
    cut_layers: tuple[int, ...]
    needs: frozenset[str]
    keeps_all: bool
    windows: list[int | None]
    text_config: Any
    encoder: Encoder | None
    cache: TileCache | None
    clock: Clock | None

    @classmethod
    def of(cls, pruner: Method, model: Model, clock: Clock | None, cache: TileCache | None = None) -> Setup:
        """Check all that can be checked before a call.

        Raises:
            MethodError: on a method that needs something unknown.
            UnsupportedModel, AttachError, Refused, UnknownTransformers: see ``Attachment``.
        """
        pruner.check_needs()
        family = family_of(model)
        family.check(model)
        layers = family.decoder(model).layers
        cut_layers = tuple(pruner.cut_layers(len(layers)))
        refusals.check_model(model, family, cut_layers, pruner.positions)
        text_config = model.config.get_text_config()
        windows = layer_windows(text_config)
        check_contract(model, family, windows)
        whole = pruner.keeps_all()
        needs = frozenset[str]() if whole else pruner.needs
        encoder = None
        if pruner.encodes_apart or cache is not None:
            encoder = refusals.check_encoder(model, family, pruner)
        return cls(pruner, model, family, layers, cut_layers, needs, whole, windows, text_config, encoder, cache, clock)

    @property
    def first_cut(self) -> int:
        """The first layer before which anything is dropped: what was not encoded is dropped before all of them."""
        return 0 if self.pruner.leaves_out else self.cut_layers[0]

    @property
    def implementation(self) -> str:
        """The language model's attention implementation, which users may change between calls."""
        return str(self.text_config._attn_implementation)

    @property
    def compact(self) -> bool:
        return self.pruner.positions == "compact"

    def lap(self, name: str) -> AbstractContextManager[Any]:
        """Times a phase, by its name."""
        return self.clock.lap(name) if self.clock is not None else nullcontext()
