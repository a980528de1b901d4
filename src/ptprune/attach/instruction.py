"""The instruction's side of a pruned prefill: what its tokens pay to all others at the layers before the cuts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ptprune.attach.cut import take, take_embedding
from ptprune.attach.prefill import Prefill
from ptprune.attach.rows import AttentionTap, Shown, keys_alone, run_to_attention
from ptprune.families.base import Family, Model
from ptprune.scores.instruction import attention_rows, summarise


class InstructionWatch:
    """Scores a prefill by the queries and keys of language model layers.

    Args:
        needs: what methods want to know, names in ``ImageEvidence``.
        windows: how far back each layer sees, see ``layer_windows``.
        lap: times a phase, by its name.
        prefill: tells the prefill at work, if any.
    """

    def __init__(
        self,
        family: type[Family],
        model: Model,
        needs: frozenset[str],
        windows: Sequence[int | None],
        lap: Callable[[str], AbstractContextManager[Any]],
        prefill: Callable[[], Prefill | None],
    ) -> None:
        self.family, self.model, self.needs, self.windows = family, model, needs, windows
        self.lap, self.prefill = lap, prefill
        self._taps: list[AttentionTap] = []

    def install(self, layer: int) -> list[Any]:
        """Hooks that score each prefill by the layer before ``layer``; layer 0 is scored by ``score_before``."""
        if layer == 0:
            return []
        attention: nn.Module = self.family.text_attention(self.model, layer - 1)
        tap = AttentionTap(attention, functools.partial(self._receive, layer - 1))
        self._taps.append(tap)
        return [
            attention.register_forward_pre_hook(functools.partial(self._before, tap)),
            attention.register_forward_hook(functools.partial(self._after, tap), always_call=True),
        ]

    def disarm(self) -> None:
        """Let go of attention modules, wherever their calls were left."""
        for tap in self._taps:
            tap.disarm()

    def _before(self, tap: AttentionTap, module: nn.Module, args: tuple[Any, ...]) -> None:
        prefill = self.prefill()
        if prefill is not None and prefill.selections is None:
            tap.arm()

    def _after(self, tap: AttentionTap, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tap.disarm()

    def _receive(self, layer: int, shown: Shown) -> None:
        prefill = self.prefill()
        assert prefill is not None
        with self.lap("select"):
            rows = prefill.instruction_rows
            queries = [query[:, row.to(query.device)] for query, row in zip(shown.query, rows, strict=True)]
            self._score(prefill, layer, queries, shown.key, shown.scaling)

    def score_before(self, prefill: Prefill, layer: nn.Module, hidden_states: Tensor, kwargs: dict[str, Any]) -> None:
        """Run the first layer up to all keys and the instruction's queries, without its attention, MLP and cache.

        Args:
            kwargs: those of the layer's call.
        """
        attention = self.family.text_attention(self.model, 0)
        cache: Any = kwargs.get("past_key_values")
        call = {**kwargs, "past_key_values": None, "use_cache": False}
        with keys_alone(attention):
            keys = run_to_attention(layer, attention, hidden_states, call).key
        if prefill.past:
            keys = torch.cat([cache.layers[0].keys, keys], dim=2)
        rows = prefill.instruction_rows
        one = rows[0].new_zeros(1)  # a layer cannot be run on nothing, and there may be no text at all
        index = pad_sequence([*rows, one], batch_first=True)[:-1]
        call |= {
            "attention_mask": None,
            "position_ids": None,
            "position_embeddings": tuple(take_embedding(part, index) for part in kwargs["position_embeddings"]),
        }
        shown = run_to_attention(layer, attention, take(hidden_states, index), call)
        queries = [query[:, : len(row)] for query, row in zip(shown.query, rows, strict=True)]
        self._score(prefill, 0, queries, keys, shown.scaling)

    def _score(self, prefill: Prefill, layer: int, queries: list[Tensor], keys: Tensor, scaling: float) -> None:
        """What the instruction pays at a layer.

        Args:
            queries: of each row's instruction, [heads, tokens, head_dim].
            keys: [batch, key_value_heads, past + length, head_dim].
        """
        device, home = keys.device, prefill.placeholders.device
        for sample, (query, rows) in enumerate(zip(queries, prefill.instruction_rows, strict=True)):
            valid, columns = prefill.key_valid[sample].to(device), prefill.key_columns[sample].to(device)
            where = columns[rows.to(device) + prefill.past]
            blocks = attention_rows(query, keys[sample], where, columns, valid, scaling, self.windows[layer])
            for name, values in summarise(blocks, self.needs, len(valid), device).items():
                prefill.attention.setdefault(name, []).append(values.to(home))
