"""Computes the attention that the instruction's tokens pay to all others, at the layers before the cuts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ptprune.attach.cut import take, take_embedding
from ptprune.attach.setup import Setup
from ptprune.attach.stage import Stage
from ptprune.attach.tap import AttentionTap, keys_alone, run_to_attention
from ptprune.conventions import MASK, POSITIONS, ROTARY, LayerCall
from ptprune.errors import BrokenPass
from ptprune.scores.attention import QueriesAndKeys
from ptprune.scores.instruction import attention_rows, summarise


class InstructionScores:
    """Scores the stages of one prefill by the queries and keys of language model layers.

    Args:
        stage: returns the current stage.
    """

    def __init__(self, setup: Setup, stage: Callable[[], Stage]) -> None:
        self.setup, self.stage = setup, stage
        self._taps: dict[int, AttentionTap] = {}  # keyed by the layer after the tapped one, before which tokens drop

    def arm(self) -> None:
        """Tap the layer before each cut. ``score_before`` does the scores for a cut before layer 0."""
        for layer in self.setup.cut_layers:
            if layer > 0:
                attention = self.setup.family.text_attention(self.setup.model, layer - 1)
                tap = self._taps[layer] = AttentionTap(attention, functools.partial(self._receive, layer - 1))
                tap.arm()

    def disarm(self) -> None:
        """Restore all attention modules. May be called twice."""
        for tap in self._taps.values():
            tap.disarm()

    def check(self, layer: int) -> None:
        """Check that the scores for the cut before ``layer`` come from exactly one call of the attention module.

        Raises:
            BrokenPass: if not.
        """
        calls = self._taps[layer].calls
        if calls != 1:
            raise BrokenPass(
                f"the attention of layer {layer - 1} handed over its queries and keys {calls} times, not once: "
                "its attention cannot rank tokens"
            )

    def _receive(self, layer: int, qk: QueriesAndKeys) -> None:
        with self.setup.lap("select"):
            stage = self.stage()
            if (
                qk.query.shape[2] != stage.columns.length
                or qk.key.shape[2] != stage.columns.past + stage.columns.length
            ):
                raise BrokenPass(
                    f"the attention of layer {layer} got {qk.query.shape[2]} queries and {qk.key.shape[2]} keys, "
                    f"but the prompt has {stage.columns.length} tokens and the cache {stage.columns.past}"
                )
            columns = stage.instruction
            queries = [query[:, row.to(query.device)] for query, row in zip(qk.query, columns, strict=True)]
            self._score(layer, queries, qk.key, qk.scaling)

    def score_before(self, layer: nn.Module, call: LayerCall) -> None:
        """Score the cut before layer 0: run that layer up to all keys and the instruction's queries, and no further."""
        stage, attention = self.stage(), self.setup.family.text_attention(self.setup.model, 0)
        alone = call.alone()
        with keys_alone(attention):
            keys = run_to_attention(layer, attention, call.states, alone).key
        if stage.columns.past:
            keys = torch.cat([call.cache.layers[0].keys, keys], dim=2)
        columns = stage.instruction
        one = columns[0].new_zeros(1)  # there may be no text at all, and a layer cannot run on zero tokens
        index = pad_sequence([*columns, one], batch_first=True)[:-1]
        rotary = None if call.rotary is None else tuple(take_embedding(part, index) for part in call.rotary)
        alone |= {name: value for name, value in ((MASK, None), (POSITIONS, None), (ROTARY, rotary)) if name in alone}
        qk = run_to_attention(layer, attention, take(call.states, index), alone)
        queries = [query[:, : len(row)] for query, row in zip(qk.query, columns, strict=True)]
        self._score(0, queries, keys, qk.scaling)

    def _score(self, layer: int, queries: list[Tensor], keys: Tensor, scaling: float) -> None:
        """Add the attention that the instruction pays at a layer to the stage.

        Args:
            queries: for each row's instruction, [heads, tokens, head_dim].
            keys: [batch, key_value_heads, past + length, head_dim].
        """
        stage, needs = self.stage(), self.setup.needs
        device, home = keys.device, stage.columns.placeholders.device
        for sample, (query, columns) in enumerate(zip(queries, stage.instruction, strict=True)):
            valid, where = stage.columns.key_valid[sample].to(device), stage.columns.key_columns[sample].to(device)
            queried = where[columns.to(device) + stage.columns.past]
            blocks = attention_rows(query, keys[sample], queried, where, valid, scaling, self.setup.windows[layer])
            for name, values in summarise(blocks, needs, len(valid), device).items():
                stage.attention.setdefault(name, []).append(values.to(home))
