"""One forward pass of a model that prunes its prompt, or goes on with a pruned cache: its steps and all of its state.

1. ``begin``: the prompt is looked at, refused or accepted; a mask over a pruned cache is rewritten; hooks are placed.
2. ``receive``: the images are encoded, inside this pass or by generate() before it; they are found in the prompt.
3. Attention before each cut: the instruction's rows are computed from its queries and keys, see ``instruction``.
4. ``before_layer``: at a cut, tokens are chosen, and hidden states and the caches of earlier layers are cut. From there
   on every layer gets masks and positions cut alike. A method that drops in stages goes through 3 and 4 at each.
5. ``after_decoder``: the output gets the prompt's shape again, the cache learns how many tokens it lost.
6. ``close``: always, also after an exception. Nothing of the pass is left on the model.

Each step checks by shapes and counters that the ones before it happened: a model that goes another way than the hooks
know is stopped before it returns a token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ptprune.attach import refusals
from ptprune.attach.cache import PrunedLayer, gather_new, key_columns, key_mask, mark_pruned, pruned, removed
from ptprune.attach.compiled import check_parts
from ptprune.attach.cut import Cut, Once, cut_features, cut_layer_call
from ptprune.attach.generation import Generation
from ptprune.attach.instruction import InstructionScores
from ptprune.attach.prompt import Prompt
from ptprune.attach.record import write_report
from ptprune.attach.setup import Setup
from ptprune.attach.stage import Stage
from ptprune.attach.windows import restrict, slide, unslide
from ptprune.attach.wrapping import wrap
from ptprune.conventions import LayerCall, ModelCall, cache_of
from ptprune.errors import BrokenPass, Refused
from ptprune.families.encoded import EncodedImage
from ptprune.report import PruningReport
from ptprune.scores.evidence import EMBEDDINGS, INSTRUCTION_ROWS


class Pass:
    """A forward pass of the multimodal model."""

    def __init__(self, setup: Setup, generation: Generation | None) -> None:
        self.setup, self.generation = setup, generation
        self.prompt: Prompt | None = None
        self._stage: Stage | None = None
        self._scores: InstructionScores | None = None
        self._cuts: list[tuple[int, Cut]] = []  # from which layer on, and all that was dropped up to it
        # real keys and their columns, where a sliding window matters to a cache that was pruned before
        self._sliding: tuple[Tensor, Tensor] | None = None
        self._slid: list[Any] = []
        self._next_layer = 0  # of those that are hooked in a prefill
        self._once = Once()
        self._write_report: Callable[[], PruningReport] | None = None
        self._undo = ExitStack()

    @staticmethod
    def is_needed(call: ModelCall) -> bool:
        """Whether anything is to be done in a pass; all others go untouched."""
        return call.prompt is not None and (call.has_images or pruned(call.cache))

    @property
    def stage(self) -> Stage:
        """The stage at work.

        Raises:
            BrokenPass: before the images were encoded.
        """
        if self._stage is None:
            raise BrokenPass("the language model was reached before the pictures went through get_image_features")
        return self._stage

    @property
    def waits_for_images(self) -> bool:
        return self.prompt is not None and self._stage is None

    @property
    def cut(self) -> Cut | None:
        """All that was dropped so far."""
        return self._cuts[-1][1] if self._cuts else None

    # --- 1 and 2: the prompt ------------------------------------------------------------------------------------------

    def begin(self, call: ModelCall, training: bool) -> None:
        """Look at the call of the multimodal model, rewrite its mask, place hooks.

        Raises:
            Refused: where the call cannot be pruned right.
        """
        given = call.prompt
        assert given is not None
        refusals.check_mask(call.mask)
        refusals.check_attention(self.setup.implementation)
        if call.has_images:
            refusals.check_forward(call, self.setup.model, training)
            refusals.check_cache(call.cache)
            self._unslide(call)
        cache, device = call.cache, given.device
        batch, new = given.shape[:2]
        seen = cache.get_seq_length() if cache is not None else 0
        keys = key_mask(cache, call.mask, batch, new, device)
        if pruned(cache):
            self._continue(call, keys)
        columns = functools.partial(key_columns, cache, batch, new, device)
        windows = self.setup.windows
        if pruned(cache) and any(window is not None and seen + new > window for window in windows):
            self._sliding = keys, columns()
        if not call.has_images:
            self._hook_layers(index for index in range(len(windows)) if self._concerns(index, cache))
            return
        ids, embeds = call.get("input_ids"), call.get("inputs_embeds")
        family, model, generation = self.setup.family, self.setup.model, self.generation
        self.prompt = Prompt(
            given,
            family.placeholders(model, ids, embeds),
            family.videos(model, ids, embeds),
            keys,
            columns(),
            new if generation is None else generation.prompt_columns(new, seen),
        )
        self._hook_prefill(cache)
        if (outputs := call.encoded_images) is not None:
            parts = getattr(outputs, "ptprune", None) or (generation and generation.parts)
            if not parts:
                raise Refused("the image features were encoded before the pruner was attached")
            self.receive(parts)

    def _unslide(self, call: ModelCall) -> None:
        """Let all layers of the cache hold everything during this prefill."""
        if any(self.setup.windows):
            if call.cache is None and call.has_cache:
                call.cache = DynamicCache(config=self.setup.model.config)
            if call.cache is not None:
                self._slid = unslide(call.cache)

    def _continue(self, call: ModelCall, keys: Tensor) -> None:
        """Go on with a cache that was pruned before."""
        cache, family = call.cache, self.setup.family
        for index, layer in enumerate(cache.layers):
            layer.armed = not layer.shifted or index >= self.setup.cut_layers[0]
        self._undo.callback(_disarm, cache.layers)
        if call.mask is not None or cache.layers[0].ragged:
            if family.grid_positions and call.positions is None:
                raise Refused(f"{family.name} cannot tell positions from a mask over a pruned cache: pass position_ids")
            # what stands in the columns of removed tokens is never read
            call.mask = torch.cat([keys.new_ones(len(keys), removed(cache)), keys], dim=1).long()

    def receive(self, parts: list[EncodedImage]) -> None:
        """The images are encoded: find them in the prompt.

        Raises:
            Refused: where the prompt does not fit them.
        """
        assert self.prompt is not None
        with self.setup.lap("select"):
            self._stage = Stage.first(self.prompt, self.setup.family, parts)
            if self.generation is not None and self.generation.selections is not None:
                # generate() without a cache repeats the prefill at each step: the prompt is the same, and so the choice
                self._stage.keep(self.generation.selections)

    # --- hooks, for as long as this pass takes ------------------------------------------------------------------------

    def _concerns(self, index: int, cache: Any) -> bool:
        """Whether a layer needs another mask or other positions in a pass without pictures."""
        return cache.layers[index].shifted or (self._sliding is not None and self.setup.windows[index] is not None)

    def _hook_layers(self, indices: Any) -> None:
        for index in indices:
            before = functools.partial(self.before_layer, index)
            hook = self.setup.layers[index].register_forward_pre_hook(before, with_kwargs=True)
            self._undo.callback(hook.remove)

    def _hook_prefill(self, cache: Any) -> None:
        setup = self.setup
        decoder, first = setup.family.decoder(setup.model), setup.cut_layers[0]
        check_parts((f"layers.{index}", layer) for index, layer in enumerate(setup.layers))
        check_parts([(type(decoder).__name__, decoder)])
        if EMBEDDINGS & setup.needs:
            hook = setup.layers[0].register_forward_pre_hook(self._before_first_layer, with_kwargs=True)
            self._undo.callback(hook.remove)
        earlier = range(first) if pruned(cache) else ()
        self._hook_layers(index for index in earlier if self._concerns(index, cache))
        self._hook_layers(range(first, len(setup.layers)))
        self._next_layer = first
        hook = decoder.register_forward_hook(self.after_decoder, with_kwargs=True)
        self._undo.callback(hook.remove)
        if setup.family.deepstack is not None:
            self._undo.callback(wrap(decoder, setup.family.deepstack, self._deepstack))
        repeated = self.generation is not None and self.generation.selections is not None
        if INSTRUCTION_ROWS & setup.needs and not repeated:
            self._scores = InstructionScores(setup, lambda: self.stage)
            self._undo.callback(self._scores.disarm)
            self._scores.arm()

    # --- 4: layers ----------------------------------------------------------------------------------------------------

    def _before_first_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.stage.embeddings = LayerCall.read(module, args, kwargs).states

    def before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook of a decoder layer."""
        call = stock = LayerCall.read(module, args, kwargs)
        if self.prompt is not None and index >= self.setup.cut_layers[0]:
            self._passed(index, call)
            if index in self.setup.cut_layers:
                with self.setup.lap("select"):
                    call = self._drop(index, module, call)
        cut = self.cut
        if cut is not None:
            with self.setup.lap("select"):
                call = cut_layer_call(cut, call, self.setup.implementation, self._once)
                _check_fit(index, cut, call)
        call = self._restrict(call, index, cut)
        call = self._compact(call, index, cut)
        return None if call is stock else call.write()

    def _passed(self, index: int, call: LayerCall) -> None:
        """Every layer from the first cut on is passed once, in order, on what the cuts before it left."""
        if index != self._next_layer:
            raise BrokenPass(
                f"language model layer {index} was called where layer {self._next_layer} had to be: the layers are not "
                "called once each, in order, through their hooks"
            )
        self._next_layer += 1
        expected = self.stage.placeholders.shape[0], self._length
        if call.states.ndim != 3 or tuple(call.states.shape[:2]) != expected:
            raise BrokenPass(
                f"language model layer {index} was given hidden states of shape {tuple(call.states.shape)}, not "
                f"[{expected[0]}, {expected[1]}, d]"
            )

    @property
    def _length(self) -> int:
        """How many columns the hidden states have now."""
        assert self.prompt is not None
        return self.prompt.length if self.cut is None else self.cut.index.shape[1]

    def _drop(self, index: int, module: nn.Module, call: LayerCall) -> LayerCall:
        """Choose what stays at this layer; cut hidden states and the caches of the layers before."""
        stage = self.stage
        if not stage.chosen:
            self._select(index, module, call)
        states = stage.merge(call.states)
        now = stage.cut()
        if now is not None:
            if unknown := call.unknown_per_token(stage.length):
                raise BrokenPass(f"layer {index} takes {', '.join(unknown)} for every token, which cannot be cut")
            states = now.states(states)
            for layer in call.cache.layers[:index] if call.cache is not None else ():
                gather_new(layer, stage.past, now.index)
            self._cuts.append((index, now if self.cut is None else self.cut.then(now)))
        if index < self.setup.cut_layers[-1]:
            self._stage = stage.next(now)
        stage.embeddings = stage.hidden_states = None
        return call if states is call.states else replace(call, states=states)

    def _select(self, index: int, layer: nn.Module, call: LayerCall) -> None:
        """Choose every image's tokens."""
        stage, setup = self.stage, self.setup
        if self._scores is not None:
            if index == 0:
                self._scores.score_before(layer, call)
            else:
                self._scores.check(index)
        if "hidden_states" in setup.needs:
            stage.hidden_states = call.states
        stage.select(setup.pruner.checked_select)
        layouts, selections = stage.outcome()
        if self.generation is not None:
            self.generation.selections = selections
        assert self.prompt is not None
        copies = stage.copies
        images = [replace(layout, sample=layout.sample // copies) for layout in layouts]
        self._write_report = functools.partial(write_report, images, selections, self.prompt.valid[::copies])

    def _restrict(self, call: LayerCall, index: int, cut: Cut | None) -> LayerCall:
        """Sliding windows over a cache that was pruned before this pass."""
        window = self.setup.windows[index]
        if window is None or self._sliding is None:
            return call
        valid, columns = self._sliding if cut is None else (cut.key_valid, cut.key_columns)
        queries, implementation = columns[:, -call.states.shape[1] :], self.setup.implementation
        mask = self._once(
            (call.mask, cut, self._sliding),
            lambda: restrict(call.mask, window, queries, columns, valid, implementation),
        )
        return replace(call, mask=mask)

    def _compact(self, call: LayerCall, index: int, cut: Cut | None) -> LayerCall:
        """Compact positions, now or by an earlier turn: as if the dropped tokens had never been there."""
        cache = call.cache
        earlier = cache.layers[index].shift if pruned(cache) and cache.layers[index].shifted else None
        now = cut.dropped_before if cut is not None and self.setup.compact else None
        if earlier is None and now is None:
            return call

        def shifted() -> tuple[Tensor, Any]:
            positions = call.positions
            if positions is None:
                raise BrokenPass(f"layer {index} is given no position ids, so they cannot be made compact")
            for shift in (now, None if earlier is None else earlier[:, None]):
                positions = positions if shift is None else positions - shift.to(positions.device)
            positions = positions.clamp(min=0)  # padding
            return positions, self.setup.family.rotary(self.setup.model, index, call.states, positions)

        positions, rotary = self._once((call.positions, call.rotary, earlier, now), shifted)
        return replace(call, positions=positions, rotary=rotary)

    def _deepstack(
        self, original: Callable[..., Any], hidden_states: Tensor, visual_mask: Tensor, features: Tensor
    ) -> Any:
        """Visual features for the tokens that are still there."""
        if (cut := self.cut) is not None:
            with self.setup.lap("select"):
                visual_mask, features = cut_features(cut, visual_mask, features)
        return original(hidden_states, visual_mask, features)

    # --- 5 and 6: the end ---------------------------------------------------------------------------------------------

    def after_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the language model."""
        cut, cache = self.cut, cache_of(output)
        self._check_end(output.last_hidden_state, cache)
        if self._write_report is not None:
            self.setup.pruner.record(self._write_report)
        if cut is None:
            slide(cache, self._slid)
            return None
        with self.setup.lap("select"):
            output.last_hidden_state = cut.restore(output.last_hidden_state)
            if cache is not None:
                mark_pruned(cache, removed(cache) + cut.removed, cut, self._shifts(cache))
        return output

    def _check_end(self, states: Tensor, cache: Any) -> None:
        """Every layer was passed, and every cache layer holds exactly what was there before and what was kept."""
        assert self.prompt is not None
        layers = len(self.setup.layers)
        if self._next_layer != layers:
            raise BrokenPass(
                f"only {self._next_layer} of {layers} language model layers were called through their hooks"
            )
        if states.shape[1] != self._length:
            raise BrokenPass(f"the language model returned {states.shape[1]} hidden states, not {self._length}")
        if cache is None:
            return
        held = self.prompt.key_valid.shape[1] - self.prompt.length + self._length
        found = [layer.keys.shape[2] if layer.keys is not None else 0 for layer in cache.layers]
        if len(found) != layers or any(number != held for number in found):
            raise BrokenPass(
                f"the cache's {len(found)} layers hold {sorted({*found})} tokens; each of {layers} has to hold {held}"
            )

    def _shifts(self, cache: Any) -> list[Tensor]:
        """For each layer how far its position ids lie behind the original ones after this pass."""
        index = self._cuts[0][1].index
        none = torch.zeros(len(index), dtype=torch.long, device=index.device)
        before = [getattr(layer, "shift", none) for layer in cache.layers]
        after = list(before)
        for first, cut in self._cuts if self.setup.compact else ():
            dropped = cut.dropped.sum(dim=1)
            for layer in range(first, len(after)):  # one tensor for many layers
                inputs = before[layer], dropped
                after[layer] = self._once(inputs, functools.partial(torch.add, *inputs))
        return after

    def close(self) -> None:
        """Take every hook of this pass off the model."""
        self._undo.close()


def _disarm(layers: list[PrunedLayer]) -> None:
    for layer in layers:
        layer.armed = False


def _check_fit(index: int, cut: Cut, call: LayerCall) -> None:
    """Masks, positions and embeddings must have the cut's length."""
    length, keys = cut.index.shape[1], cut.past_valid.shape[1] + cut.index.shape[1]
    sizes = [] if call.mask is None else [("mask", call.mask.shape[-1], keys)]
    if call.positions is not None:
        sizes.append(("position ids", call.positions.shape[-1], length))
    if call.rotary is not None:
        sizes.append(("rotary embeddings", call.rotary[0].shape[-2], length))
    for name, found, right in sizes:
        if found != right:
            raise BrokenPass(f"layer {index} would be given {name} of {found} tokens, not {right}")
