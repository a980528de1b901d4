"""Computes the attention that the instruction's tokens pay to all others, at the layers before the cuts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

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
            if stage.chosen:
                return
            if (
                qk.query.shape[2] != stage.columns.length
                or qk.key.shape[2] != stage.columns.past + stage.columns.length
            ):
                raise BrokenPass(
                    f"the attention of layer {layer} got {qk.query.shape[2]} queries and {qk.key.shape[2]} keys, "
                    f"but the prompt has {stage.columns.length} tokens and the cache {stage.columns.past}"
                )
            index, query, key = stage.instruction.to(qk.query.device), qk.query, qk.key
            if stage.copies > 1:
                query, key = query[:: stage.copies], key[:: stage.copies]
            if len(index) == 1:
                query = query.index_select(2, index[0])
            else:
                query = query.gather(2, index[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
            self._score(layer, query, key, qk.scaling)

    def score_before(self, layer: nn.Module, call: LayerCall) -> None:
        """Score the cut before layer 0: run that layer up to all keys and the instruction's queries, and no further."""
        stage, attention = self.stage(), self.setup.family.text_attention(self.setup.model, 0)
        alone = call.alone()
        with keys_alone(attention):
            keys = run_to_attention(layer, attention, call.states, alone).key
        if stage.columns.past:
            keys = torch.cat([call.cache.layers[0].keys, keys], dim=2)
        index = stage.instruction
        if not index.shape[1]:  # there may be no text at all, and a layer cannot run on zero tokens
            index = index.new_zeros(len(index), 1)
        states, rotary = call.states, call.rotary
        if stage.copies > 1:
            states, keys = states[:: stage.copies], keys[:: stage.copies]
            rotary = None if rotary is None else tuple(_first_copies(part, stage.copies) for part in rotary)
        rotary = None if rotary is None else tuple(take_embedding(part, index) for part in rotary)
        alone |= {name: value for name, value in ((MASK, None), (POSITIONS, None), (ROTARY, rotary)) if name in alone}
        qk = run_to_attention(layer, attention, take(states, index), alone)
        self._score(0, qk.query[:, :, : stage.instruction.shape[1]], keys, qk.scaling)

    def _score(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Add the attention that the instruction pays at a layer to the stage.

        Args:
            query: of each prompt's instruction, [prompts, heads, tokens, head_dim].
            key: [prompts, key_value_heads, past + length, head_dim].
        """
        stage, columns, device = self.stage(), self.stage().columns, key.device
        valid, where = columns.key_valid, columns.key_columns
        valid = None if valid is None else valid[:: stage.copies].to(device)
        index = stage.instruction.to(device) + columns.past if columns.past else stage.instruction.to(device)
        if where is not None:
            where = where[:: stage.copies].to(device)
            index = where.gather(1, index)
        blocks = attention_rows(query, key, index, where, valid, scaling, self.setup.windows[layer])
        summary = summarise(blocks, self.setup.needs, stage.lengths, key.shape[2], device)
        stage.attention = {name: values.to(columns.stays.device) for name, values in summary.items()}


def _first_copies(embedding: Tensor, copies: int) -> Tensor:
    """Position embeddings of each prompt's first copy; one that all rows share stays as it is."""
    batch = embedding.ndim - 3
    return (
        embedding if embedding.shape[batch] == 1 else embedding[(slice(None),) * batch + (slice(None, None, copies),)]
    )
