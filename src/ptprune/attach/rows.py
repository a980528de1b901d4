"""What the vision tower made of some rows of a call, put in their places among all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ptprune.attach.patches import PatchCut
from ptprune.attach.tile_cache import CachedTile
from ptprune.upload import upload

Place = tuple[str, int | None]  # the name of an output of the tower, and which of its entries


class EncodedRows:
    """What was encoded of one call, by row.

    Attributes:
        order: rows that are there, as they came.
        new: those that the tower encoded now; others come from a cache.
        untouched: the tower's own output, where it encoded all rows at once, in order.
        attention: name in ``ImageEvidence`` -> FloatTensor [rows, patches].
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.order: list[int] = []
        self.new: list[int] = []
        self.untouched: Any = None
        self.states: dict[Place, Tensor] = {}
        self.attention: dict[str, Tensor] = {}
        self.groups: list[tuple[list[int], Tensor | np.ndarray]] = []  # rows, and the token groups that each has left
        self._length = 0  # of the tuple of hidden states

    def __contains__(self, row: int) -> bool:
        return row in self.order

    def add(self, rows: list[int], output: Any, attention: dict[str, Tensor], cut: PatchCut | None) -> None:
        """Take what the tower made of some rows."""
        self._length = len(getattr(output, "hidden_states", None) or ())
        if rows == list(range(self.rows)) and cut is None:
            self.untouched, self.attention = output, attention
        else:
            index: Tensor | None = None
            done: dict[int, Tensor] = {}
            for place, states in _places(output).items():
                index = upload(np.array(rows), states.device) if index is None else index
                if id(states) in done:  # one tensor under two names
                    self.states[place] = done[id(states)]
                    continue
                whole = states if cut is None else cut.spread(states)
                done[id(states)] = self.states[place] = self._put(self.states.get(place), whole, index)
            for name, values in attention.items():
                whole = values if cut is None else cut.spread(values)
                self.attention[name] = self._put(self.attention.get(name), whole, index)
        self.order += rows
        self.new += rows
        if cut is not None:
            self.groups.append((rows, cut.groups))

    def _put(self, there: Tensor | None, values: Tensor, index: Tensor | None) -> Tensor:
        """Write rows into a tensor of all rows, zeros where there are none."""
        assert index is not None
        there = blank(values, self.rows) if there is None else there
        return there.index_copy_(0, index.to(values.device), values)

    def take(self, row: int, tile: CachedTile) -> None:
        """Take a row from the cache."""
        here = np.array([row])
        for place, states in tile.states.items():
            self.states[place] = self._put(self.states.get(place), states[None], upload(here, states.device))
        for name, values in tile.attention.items():
            self.attention[name] = self._put(self.attention.get(name), values[None], upload(here, values.device))
        self._length = max(self._length, tile.length)
        self.order.append(row)
        if tile.groups is not None:
            self.groups.append(([row], tile.groups[None]))

    def tile(self, row: int, names: frozenset[str]) -> CachedTile:
        """A row as the cache keeps it: copies, so that the others are not held with it."""
        groups = self.groups_on_host().get(row)
        places = self.states or _places(self.untouched)
        states = {place: states[row].detach().clone() for place, states in places.items()}
        return CachedTile(states, {name: self.attention[name][row].clone() for name in names}, groups, self._length)

    def copy(self, sources: Mapping[int, int]) -> None:
        """Rows whose pixels are those of other rows."""
        if not sources:
            return
        for values in (self.states, self.attention):
            for place, whole in list(values.items()):
                to = upload(np.array(list(sources)), whole.device)
                of = upload(np.array(list(sources.values())), whole.device)
                values[place] = whole.index_copy(0, to, whole.index_select(0, of))  # type: ignore[index]
        mine = self.groups_on_host()
        self.groups += [([row], mine[of][None]) for row, of in sources.items() if of in mine]

    def groups_on_host(self) -> dict[int, np.ndarray]:
        """Row -> the token groups that it has left, for rows that lost some; read from the device at once."""
        if not self.groups:
            return {}
        on_device = [groups.flatten() for _, groups in self.groups if isinstance(groups, Tensor)]
        if on_device:
            read = torch.cat(on_device).cpu().numpy()
            found = []
            for rows, groups in self.groups:
                if isinstance(groups, Tensor):
                    found.append((rows, read[: groups.numel()].reshape(len(rows), -1)))
                    read = read[groups.numel() :]
                else:
                    found.append((rows, groups))
            self.groups = found  # type: ignore[assignment]
        return {row: mine for rows, groups in self.groups for row, mine in zip(rows, groups, strict=True)}

    def output(self) -> BaseModelOutputWithPooling:
        """The tower's output for all rows."""
        hidden = tuple(self.states.get(("hidden_states", i)) for i in range(self._length))
        return BaseModelOutputWithPooling(
            last_hidden_state=self.states["last_hidden_state", None],
            hidden_states=hidden or None,  # type: ignore[arg-type]
        )


def _places(output: Any) -> dict[Place, Tensor]:
    """The states that a tower's output holds, by their places."""
    hidden = getattr(output, "hidden_states", None) or ()
    places: dict[Place, Tensor] = {("last_hidden_state", None): output.last_hidden_state}
    return places | {("hidden_states", i): states for i, states in enumerate(hidden) if states is not None}


def blank(values: Tensor, rows: int) -> Tensor:
    """What stands where nothing was encoded: zeros [rows, ...] like ``values`` [some rows, ...]. Nothing reads them."""
    return values.new_zeros(rows, *values.shape[1:])
