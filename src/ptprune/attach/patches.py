"""Drops patches inside the vision tower, for one call of it: later layers see fewer rows, and no mask of full length.

The attention of the layer before the cut scores the patches: what [CLS] pays them there, or else what they receive. A
tile keeps the best token groups, the patches that make one LLM token, and its [CLS]. Nothing is put back.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ptprune.attach.cut import take
from ptprune.attach.setup import Setup
from ptprune.attach.tap import AttentionTap
from ptprune.conventions import MASK, STATES, arguments_of
from ptprune.errors import BrokenPass
from ptprune.families.base import Encoder
from ptprune.families.tiled import pool_to
from ptprune.scores.attention import QueriesAndKeys, patch_scores
from ptprune.selection import keep_best


class PatchCut:
    """The cut of one call of the tower, all tiles of which keep equally many token groups.

    Args:
        has_cls: whether the tower's first row is a [CLS].
        layer: of the tower, before which patches are dropped.
        side: tokens a side of a tile.
        number: token groups that each tile keeps.

    Attributes:
        groups: LongTensor [tiles, number], those that each tile kept, increasing.
    """

    def __init__(self, setup: Setup, encoder: Encoder, has_cls: bool, layer: int, side: int, number: int) -> None:
        self.setup, self.encoder, self.has_cls = setup, encoder, has_cls
        self.layer, self.side, self.number = layer, side, number
        self._groups: Tensor | None = None
        self._index: Tensor | None = None  # LongTensor [tiles, kept], rows of the hidden states that stay
        self._length = 0  # rows of the hidden states before the cut
        self._undo = ExitStack()

    @property
    def groups(self) -> Tensor:
        if self._groups is None or self._index is None:
            raise BrokenPass(
                f"the vision encoder ran, but not its layer {self.layer}, before which patches are dropped"
            )
        return self._groups

    def arm(self) -> None:
        """From now on, until ``disarm``, the tower's layers drop patches."""
        before = self.encoder.layers[self.layer - 1]
        tap = AttentionTap(getattr(before, self.encoder.attention), self._receive)
        tap.arm()
        self._undo.callback(tap.disarm)
        for index in range(self.layer, len(self.encoder.layers)):
            layer = self.encoder.layers[index]
            hook = self._cut if index == self.layer else self._cut_mask
            self._undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def disarm(self) -> None:
        self._undo.close()

    def _receive(self, qk: QueriesAndKeys) -> None:
        with self.setup.lap("select"):
            paid = patch_scores(qk, self.has_cls, {"encoder_attention"})["encoder_attention"]
            scores = pool_to(self.side, paid.view(len(qk.key), -1))
            self._groups = keep_best(scores, self.number)

    def _cut(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Pre-hook of the first layer that sees fewer patches."""
        states = args[0] if args else kwargs[STATES]
        if self._groups is None:
            raise BrokenPass("the attention before the layer where patches are dropped showed no queries and keys")
        with self.setup.lap("select"):
            self._length = states.shape[1]
            patches = self._members[self._groups].flatten(1)
            first = states.shape[1] - self._members.numel()  # [CLS], if there is one
            index = (patches + first).sort(dim=1).values
            if first:
                ahead = torch.arange(first, device=index.device).expand(len(index), -1)
                index = torch.cat([ahead, index], dim=1)
            self._index = index
            states = take(states, index)
        if args:
            args = (states, *args[1:])
        else:
            kwargs = {**kwargs, STATES: states}
        return self._cut_mask(module, args, kwargs)

    @property
    def _members(self) -> Tensor:
        """LongTensor [tokens, patches of a token], row by row."""
        block, side = self.encoder.block, self.side
        assert self._groups is not None
        patches = torch.arange((side * block) ** 2, device=self._groups.device)
        return patches.view(side, block, side, block).transpose(1, 2).reshape(side * side, block * block)

    def _cut_mask(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Pre-hook of every layer that sees fewer patches: cuts its mask, where it has one."""
        names = arguments_of(module)
        at = names.index(MASK) if MASK in names else len(args)
        mask = args[at] if at < len(args) else kwargs.get(MASK)
        if mask is None or self._index is None:
            return args, kwargs
        index = self._index
        if mask.ndim == 2:
            mask = mask.gather(1, index)
        else:
            mask = mask.expand(len(index), -1, -1, -1)
            mask = mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
            mask = mask.gather(3, index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
        if at < len(args):
            return (*args[:at], mask, *args[at + 1 :]), kwargs
        return args, {**kwargs, MASK: mask}

    def spread(self, states: Tensor) -> Tensor:
        """Put what is left of the tower's rows in their places: [tiles, kept, d] -> [tiles, rows, d], zeros elsewhere.

        Hidden states from before the cut stay as they are. Of scores, which have no [CLS], only the patches are put.
        """
        if states.shape[1] == self._length:
            return states
        index = self._index
        assert index is not None
        length, without = self._length, index.shape[1] - states.shape[1]
        if without:
            index, length = index[:, without:] - without, length - without
        whole = states.new_zeros(len(states), length, *states.shape[2:])
        index = index.to(states.device)
        if states.ndim > 2:
            index = index[..., None].expand_as(states)
        return whole.scatter(1, index, states)
