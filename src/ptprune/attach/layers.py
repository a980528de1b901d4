"""The layers of one forward pass: what is dropped before which, and what each of them is given from there on.

Needs the prompt's first ``Stage`` when the first cut is reached; leaves every cache layer cut alike and marked, and the
output in the prompt's shape. In a pass without pictures there is nothing to drop: the layers of a cache that was pruned
before get masks and positions that fit it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ptprune.attach.cache import gather_new, mark_pruned, pruned, removed
from ptprune.attach.cut import Cut, Memo, cut_features, cut_layer_call
from ptprune.attach.ending import check_end, shifts
from ptprune.attach.generation import Generation
from ptprune.attach.instruction import InstructionScores
from ptprune.attach.prompt import Prompt
from ptprune.attach.setup import Setup
from ptprune.attach.stage import Stage
from ptprune.attach.windows import restrict, slide
from ptprune.conventions import PER_TOKEN, STATES, LayerCall, cache_of
from ptprune.errors import BrokenPass
from ptprune.report import PruningReport
from ptprune.selection import Selection

SHARED = tuple(name for name in PER_TOKEN if name != STATES)  # what all layers of a kind are given alike


class Layers:
    """Hooks of a pass on the language model and its layers.

    Args:
        prompt: None in a pass without pictures.
        sliding: real keys [batch, past + length] and their columns, where a sliding window matters to a cache that was
            pruned before.
        slid: the sliding layers that the cache has to get back where nothing is dropped.

    Attributes:
        scores: what the instruction pays; None where nobody asks, or everything is chosen already.
    """

    def __init__(
        self,
        setup: Setup,
        generation: Generation | None,
        prompt: Prompt | None,
        sliding: tuple[Tensor, Tensor] | None,
        slid: list[Any],
    ) -> None:
        self.setup, self.generation, self.prompt = setup, generation, prompt
        self.scores: InstructionScores | None = None
        self._sliding, self._slid = sliding, slid
        self._stage: Stage | None = None
        self._cuts: list[tuple[int, Cut]] = []  # from which layer on, and all that was dropped up to it
        self._next_layer = setup.first_cut  # of those from the first cut on
        self.known: list[Selection] | None = None  # what an earlier pass over the same prompt chose
        self._once = Memo()
        self._seen: dict[tuple[int, ...], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        # layers that shift positions or look at old keys differ even where they are called alike
        self._alike = prompt is not None and prompt.past.columns is None and sliding is None and not setup.compact
        self._write_report: Callable[[], PruningReport] | None = None
        self._whole = False  # whether every token stays

    @property
    def stage(self) -> Stage:
        """The stage at work.

        Raises:
            BrokenPass: before the images were encoded.
        """
        if self._stage is None:
            raise BrokenPass("the language model was reached before the pictures went through get_image_features")
        return self._stage

    @stage.setter
    def stage(self, stage: Stage) -> None:
        self._stage = stage

    def keep_all(self) -> None:
        """Every token stays, so that nothing is scored and chosen."""
        assert self.prompt is not None
        self.stage.keep_all()
        self._whole, self._write_report = True, self.stage.writer(self.prompt.valid)
        if self.scores is not None:
            self.scores.disarm()

    @property
    def waits_for_images(self) -> bool:
        return self.prompt is not None and self._stage is None

    @property
    def cut(self) -> Cut | None:
        """All that was dropped so far."""
        return self._cuts[-1][1] if self._cuts else None

    def concerns(self, index: int, cache: Any) -> bool:
        """Whether a layer that nothing is dropped for needs another mask or other positions: of a pruned cache."""
        return cache.layers[index].shifted or (self._sliding is not None and self.setup.windows[index] is not None)

    def before_first_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._whole:
            self.stage.embeddings = LayerCall.read(module, args, kwargs).states

    def before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook of a decoder layer."""
        if (changed := self._as_before(index, args, kwargs)) is not None:
            self._passed(index, args[0])
            return args, {**kwargs, **changed}
        call = stock = LayerCall.read(module, args, kwargs)
        if self.prompt is not None and index >= self.setup.first_cut:
            self._passed(index, call.states)
            if index == 0 and self.stage.leaves_out:
                with self.setup.lap("select"):
                    call = self._leave_out(call)
            if index in self.setup.cut_layers and not self._whole:
                with self.setup.lap("select"):
                    call = self._drop(index, module, call)
        cut = self.cut
        if cut is not None:
            with self.setup.lap("select"):
                call = cut_layer_call(cut, call, self.setup.implementation, self._once)
                _check_fit(index, cut, call)
        call = self._restrict(call, index, cut)
        call = self._compact(call, index, cut)
        if call is stock:
            return None
        written = call.write()
        self._remember(kwargs, written[1])
        return written

    def _as_before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """What to change where a layer is called with the same objects as one before it behind the same cut: hooks
        of many layers cost more than all operations that they save."""
        if not self._seen or index in self.setup.cut_layers or len(args) != 1:
            return None
        known = self._seen.get(tuple(id(kwargs.get(name)) for name in SHARED))
        return None if known is None else known[1]

    def _remember(self, given: dict[str, Any], changed: dict[str, Any]) -> None:
        if self._alike:
            shared = tuple(given.get(name) for name in SHARED)  # held, so that Python cannot reuse their ids
            new = {name: value for name, value in changed.items() if given.get(name) is not value}
            self._seen[tuple(map(id, shared))] = shared, new

    def _passed(self, index: int, states: Tensor) -> None:
        """Every layer from the first cut on is passed once, in order, on what the cuts before it left."""
        if index != self._next_layer:
            raise BrokenPass(
                f"language model layer {index} was called where layer {self._next_layer} had to be: the layers are not "
                "called once each, in order, through their hooks"
            )
        self._next_layer += 1
        expected = len(self.stage.columns.counts), self._length
        if states.ndim != 3 or tuple(states.shape[:2]) != expected:
            raise BrokenPass(
                f"language model layer {index} was given hidden states of shape {tuple(states.shape)}, not "
                f"[{expected[0]}, {expected[1]}, d]"
            )

    @property
    def _length(self) -> int:
        """How many columns the hidden states have now."""
        assert self.prompt is not None
        return self.prompt.length if self.cut is None else self.cut.index.shape[1]

    def _leave_out(self, call: LayerCall) -> LayerCall:
        """Drop what was not encoded, before anything looks at it. What the layer is given is cut to the rest."""
        stage = self.stage
        now = stage.cut()
        assert now is not None
        states = self._cut(0, stage, now, call)
        if not self._whole:
            self._stage = stage.next(now)
        return replace(call, states=states)

    def _cut(self, index: int, stage: Stage, now: Cut, call: LayerCall) -> Tensor:
        """Cut hidden states and the caches of the layers before."""
        if unknown := call.unknown_per_token(stage.columns.length):
            raise BrokenPass(f"layer {index} takes {', '.join(unknown)} for every token, which cannot be cut")
        for layer in call.cache.layers[:index] if call.cache is not None else ():
            gather_new(layer, now)
        self._cuts.append((index, now if self.cut is None else self.cut.then(now)))
        self._seen.clear()
        return now.states(call.states)

    def _drop(self, index: int, module: nn.Module, call: LayerCall) -> LayerCall:
        """Choose what stays at this layer; cut hidden states and the caches of the layers before."""
        stage = self.stage
        if self.known is not None and stage.before is None:
            stage.keep(self.known)
        if not stage.chosen:
            self._select(index, module, call)
        states = stage.merge(call.states)
        now = stage.cut()
        if now is not None:
            states = self._cut(index, stage, now, replace(call, states=states))
        if index < self.setup.cut_layers[-1]:
            self._stage = following = stage.next(now)
            left = [(image.layout.num_tokens, image.layout.num_unpruned) for image in following.images]
            if all(self.setup.pruner.keeps_rest(*numbers) for numbers in left):
                following.keep_all()
        stage.embeddings = stage.hidden_states = None
        return call if states is call.states else replace(call, states=states)

    def _select(self, index: int, layer: nn.Module, call: LayerCall) -> None:
        """Choose every image's tokens."""
        stage, setup = self.stage, self.setup
        if self.scores is not None:
            if index == 0:
                cut = self.cut
                given = call if cut is None else cut_layer_call(cut, call, setup.implementation, self._once)
                self.scores.score_before(layer, given)
            else:
                self.scores.check(index)
        if "hidden_states" in setup.needs:
            stage.hidden_states = call.states
        stage.select(setup.pruner.select_all, setup.needs, last=index == setup.cut_layers[-1])
        if self.generation is not None:
            self.generation.selections = stage.selections
        assert self.prompt is not None
        self._write_report = stage.writer(self.prompt.valid)

    def _restrict(self, call: LayerCall, index: int, cut: Cut | None) -> LayerCall:
        """Sliding windows over a cache that was pruned before this pass."""
        window = self.setup.windows[index]
        if window is None or self._sliding is None:
            return call
        valid, columns = self._sliding if cut is None else (cut.key_valid, cut.key_columns)
        if valid is None:
            valid = torch.ones_like(columns, dtype=torch.bool)
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

    def deepstack(
        self, original: Callable[..., Any], hidden_states: Tensor, visual_mask: Tensor, features: Tensor
    ) -> Any:
        """Visual features for the tokens that are still there."""
        if (cut := self.cut) is not None:
            with self.setup.lap("select"):
                visual_mask, features = cut_features(cut, visual_mask, features)
        return original(hidden_states, visual_mask, features)

    def after_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the language model."""
        cut, cache = self.cut, cache_of(output)
        if self.prompt is not None:
            check_end(
                self.setup, self.prompt.past.length, self._next_layer, self._length, output.last_hidden_state, cache
            )
        if self._write_report is not None:
            self.setup.pruner.record(self._write_report)
        if cut is None:
            slide(cache, self._slid)
            return None
        with self.setup.lap("select"):
            output.last_hidden_state = cut.restore(output.last_hidden_state)
            if cache is not None:
                mark_pruned(
                    cache, removed(cache) + cut.removed, cut, shifts(cache, self._cuts, self.setup.compact, self._once)
                )
        return output


def _check_fit(index: int, cut: Cut, call: LayerCall) -> None:
    """Masks, positions and embeddings must have the cut's length."""
    length, keys = cut.index.shape[1], cut.past + cut.index.shape[1]
    sizes = [] if call.mask is None else [("mask", call.mask.shape[-1], keys)]
    if call.positions is not None:
        sizes.append(("position ids", call.positions.shape[-1], length))
    if call.rotary is not None:
        sizes.append(("rotary embeddings", call.rotary[0].shape[-2], length))
    for name, found, right in sizes:
        if found != right:
            raise BrokenPass(f"layer {index} would be given {name} of {found} tokens, not {right}")
