"""One forward pass that prunes its prompt or continues a pruned cache, from begin to end.

1. ``begin`` checks the prompt, refuses or accepts it, rewrites a mask over a pruned cache and places hooks. It creates
   a ``Prompt`` and the ``Layers`` that handle what happens at the layers.
2. ``receive`` gets the images, encoded inside this pass or by generate() before it. It finds them in the prompt and
   creates the first ``Stage``.
3. The attention before each cut gives its queries and keys, from which ``instruction`` computes the attention rows.
4. Before each layer from the first cut on, ``layers`` chooses and drops tokens and cuts the layer's arguments.
5. After the language model, ``layers`` gives its output the prompt's shape and marks the cache as pruned.
6. ``close`` always runs, also after an exception, and removes everything that the pass put on the model.

Each step checks by shapes and counters that the ones before it happened. A model that takes another path than the hooks
expect is stopped before it returns a token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ptprune.attach import refusals
from ptprune.attach.cache import Pruned, check_length, key_columns, key_mask, pruned, removed, seen_by
from ptprune.attach.compiled import check_parts
from ptprune.attach.generation import Generation
from ptprune.attach.instruction import InstructionScores
from ptprune.attach.layers import Layers
from ptprune.attach.prompt import Past, Prompt
from ptprune.attach.setup import Setup
from ptprune.attach.stage import Stage
from ptprune.attach.static import StandIn, check_windows, is_static, needs_pass
from ptprune.attach.windows import unslide
from ptprune.attach.wrapping import wrap
from ptprune.conventions import ModelCall
from ptprune.errors import Refused
from ptprune.families.encoded import Encoded
from ptprune.scores.evidence import EMBEDDINGS, INSTRUCTION_ROWS


class Pass:
    """A forward pass of the multimodal model."""

    def __init__(self, setup: Setup, generation: Generation | None) -> None:
        self.setup, self.generation = setup, generation
        self.prompt: Prompt | None = None
        self.layers: Layers | None = None
        self._stand_in: StandIn | None = None
        self._undo = ExitStack()

    @staticmethod
    def is_needed(call: ModelCall) -> bool:
        """Whether a call needs a pass. All others run unchanged."""
        if call.prompt is None or call.has_images or not pruned(call.cache):
            return call.prompt is not None and call.has_images
        return not is_static(call.cache) or needs_pass(call.cache, call.mask)

    def begin(self, call: ModelCall, training: bool) -> None:
        """Check a call of the multimodal model, rewrite its mask and place hooks.

        Raises:
            Refused: if the call cannot be pruned correctly.
        """
        given = call.prompt
        assert given is not None
        refusals.check_mask(call.mask)
        refusals.check_attention(self.setup.implementation)
        if call.has_images:
            refusals.check_forward(call, self.setup.model, training)
            self._begin_static(call.cache, given.shape[1])
            refusals.check_cache(call.cache)
        elif is_static(call.cache):
            check_windows(call.cache, self.setup.windows, given.shape[1])
        slid = self._unslide(call) if call.has_images else []
        cache, device = call.cache, given.device
        batch, new = given.shape[:2]
        seen = seen_by(cache)
        check_length(cache, call.mask, new)
        setup, generation = self.setup, self.generation
        sliding, past = None, Past(seen)
        if pruned(cache):
            first = cache.layers[0]
            held = seen - first.removed
            far = any(window is not None and seen + new > window for window in setup.windows)
            keys = columns = None
            if call.has_images or far:
                keys, columns = key_mask(cache, call.mask, batch, new, device), key_columns(cache, batch, new, device)
                sliding = (keys, columns) if far else None
                past = Past(held, keys[:, :held] if first.ragged else None, columns)
            self._continue(call, keys, batch, new)
        if not call.has_images:
            self.layers = Layers(setup, generation, None, sliding, [])
            self._hook_layers(index for index in range(len(setup.layers)) if self.layers.concerns(index, cache))
            return
        prompt_length = new if generation is None else generation.prompt_columns(new, seen)
        prompt = self.prompt = Prompt.read(call, setup.family, setup.model, past, prompt_length)
        self.layers = Layers(setup, generation, prompt, sliding, slid)
        self._hook_prefill(self.layers, cache)
        if (outputs := call.encoded_images) is not None:
            encoded = getattr(outputs, "ptprune", None) or (generation and generation.encoded)
            if not encoded:
                refusals.refuse_encoded()
            self.receive(encoded)

    def _begin_static(self, cache: Any, new: int) -> None:
        """Let dynamic layers stand in for static ones during this prefill."""
        if is_static(cache):
            refusals.check_static(self.setup, cache, new)
            self._stand_in = StandIn(cache)
        elif self.generation is not None:
            self._stand_in = self.generation.stand_in
        if self._stand_in is not None:
            self._undo.callback(self._stand_in.put_back)

    def _unslide(self, call: ModelCall) -> list[Any]:
        """Let all layers of the cache hold everything during this prefill. Returns what ``slide`` needs to undo it."""
        if not any(self.setup.windows):
            return []
        if call.cache is None and call.has_cache:
            call.cache = DynamicCache(config=self.setup.model.config)
        return unslide(call.cache) if call.cache is not None else []

    def _continue(self, call: ModelCall, keys: Tensor | None, batch: int, new: int) -> None:
        """Continue a cache that was pruned before.

        Args:
            keys: see ``key_mask``; None: not needed so far.
        """
        cache, family = call.cache, self.setup.family
        for index, layer in enumerate(cache.layers):
            # positions of a shifted layer are corrected by hooks, which only the layers from the first cut on have
            layer.armed = not layer.shifted or index >= self.setup.first_cut
        self._undo.callback(_disarm, cache.layers)
        first = cache.layers[0]
        if call.mask is None and not first.ragged:
            return
        if family.grid_positions and call.positions is None:
            raise Refused(f"{family.name} cannot derive positions from a pruned cache's mask: pass position_ids")
        if not first.padded:  # the mask is all ones up to the new columns, so that its last columns fit as they are
            return
        if keys is None:
            assert call.prompt is not None
            keys = key_mask(cache, call.mask, batch, new, call.prompt.device)
        # the columns of removed tokens may hold anything: they are never read
        call.mask = torch.cat([keys.new_ones(len(keys), removed(cache)), keys], dim=1).long()

    @property
    def waits_for_images(self) -> bool:
        return self.layers is not None and self.layers.waits_for_images

    def receive(self, encoded: Sequence[Encoded]) -> None:
        """Find the encoded images in the prompt.

        Raises:
            Refused: if the prompt does not fit them.
        """
        assert self.prompt is not None
        assert self.layers is not None
        with self.setup.lap("select"):
            stage = Stage.first(self.prompt, self.setup.family, encoded)
            if self.generation is not None and self.generation.selections is not None:
                # generate() without a cache repeats the prefill at each step: the same prompt keeps the same choice
                self.layers.known = self.generation.selections
            self.layers.stage = stage
            sizes = [image.layout.num_unpruned for image in stage.images]
            if self.setup.keeps_all or all(map(self.setup.pruner.keeps_all, sizes)):
                self.layers.keep_all()

    def _hook(self, module: nn.Module, before: Callable[..., Any]) -> None:
        self._undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)

    def _hook_layers(self, indices: Iterable[int]) -> None:
        assert self.layers is not None
        for index in indices:
            self._hook(self.setup.layers[index], functools.partial(self.layers.before_layer, index))

    def _hook_prefill(self, layers: Layers, cache: Any) -> None:
        setup = self.setup
        decoder, first = setup.family.decoder(setup.model), setup.first_cut
        check_parts((f"layers.{index}", layer) for index, layer in enumerate(setup.layers))
        check_parts([(type(decoder).__name__, decoder)])
        if EMBEDDINGS & setup.needs:
            self._hook(setup.layers[0], layers.before_first_layer)
        earlier = range(first) if pruned(cache) else ()
        self._hook_layers(index for index in earlier if layers.concerns(index, cache))
        self._hook_layers(range(first, len(setup.layers)))
        self._undo.callback(decoder.register_forward_hook(layers.after_decoder, with_kwargs=True).remove)
        if self._stand_in is not None:
            self._undo.callback(decoder.register_forward_hook(self._stand_in.settle).remove)
        if setup.family.deepstack is not None:
            self._undo.callback(wrap(decoder, setup.family.deepstack, layers.deepstack))
        repeated = self.generation is not None and self.generation.selections is not None
        if INSTRUCTION_ROWS & setup.needs and not repeated:
            scores = layers.scores = InstructionScores(setup, lambda: layers.stage)
            self._undo.callback(scores.disarm)
            scores.arm()

    def close(self) -> None:
        """Remove every hook of this pass."""
        self._undo.close()


def _disarm(layers: list[Pruned]) -> None:
    for layer in layers:
        layer.armed = False
