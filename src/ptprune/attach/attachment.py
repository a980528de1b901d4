"""A pruner at work on one model: what is hooked, when, and in which order.

A prefill with images goes through these steps; everything else passes untouched.

1. ``get_image_features`` (wrapped on the instance): the [CLS] row of one ViT attention module is read on the way, and
   what the family makes of it travels on the output object, because generate() encodes before it calls the model.
2. Before the multimodal model: the prompt is looked at, refused or accepted; a mask over a pruned cache is rewritten.
3. Attention of layer ``max(layer - 1, 0)``: the instruction's rows are computed from its queries and keys.
4. Before layer ``layer``: tokens are chosen; hidden states and the caches of earlier layers are cut. This layer and all
   after it get masks and positions cut alike. A method that drops in stages goes through 3 and 4 again at each.
5. After the language model: its output gets the prompt's shape again, the cache learns how many tokens it lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ptprune.attach import refusals
from ptprune.attach.cache import PrunedLayer, gather_new, key_columns, key_mask, mark_pruned, pruned, removed
from ptprune.attach.cut import Cut, Once, cut_features, cut_layer_call
from ptprune.attach.generation import Generation, named
from ptprune.attach.instruction import InstructionWatch
from ptprune.attach.method import Method
from ptprune.attach.prefill import Prefill
from ptprune.attach.record import write_report
from ptprune.attach.vision import VisionWatch
from ptprune.attach.windows import layer_windows, restrict, slide, unslide
from ptprune.clock import Clock
from ptprune.errors import AttachError, Refused
from ptprune.families import family_of
from ptprune.families.base import Model
from ptprune.families.encoded import EncodedImage, Wanted
from ptprune.scores.evidence import EMBEDDINGS, INSTRUCTION_ROWS

# Weak on both sides: an attachment lives in its model's hooks, and dies with the model.
_attached: WeakKeyDictionary[nn.Module, ReferenceType[Attachment]] = WeakKeyDictionary()


class Attachment:
    """Hooks a pruner into a model; ``remove`` leaves the model as it was.

    Raises:
        TypeError: on a model of no supported family.
        AttachError: on a model that has a pruner already, or is compiled.
        Refused: on a model that this pruner's settings do not fit.
    """

    def __init__(self, pruner: Method, model: Model, clock: Clock | None = None) -> None:
        self.family = family_of(model)
        if attachment_of(model) is not None:
            raise AttachError(f"a pruner is attached to this {type(model).__name__} already: detach it first")
        self.family.check(model)
        self.pruner, self.model, self.clock = pruner, model, clock
        self.layers = self.family.decoder(model).layers
        self.cut_layers = pruner.cut_layers(len(self.layers))
        refusals.check_model(model, self.family, self.cut_layers, pruner.positions)
        self.windows = layer_windows(model.config.get_text_config())
        self.needs = pruner.needs
        wanted = Wanted(self.needs, pruner.window)
        self._vision = VisionWatch(self.family, model, wanted, self._lap, self._receive_images)
        self._prefill: Prefill | None = None
        self._cuts: list[tuple[int, Cut]] = []  # of this pass: from which layer on, and all that was dropped up to it
        # real keys and their columns in this pass, where a sliding window matters to a cache that was pruned before
        self._sliding: tuple[Tensor, Tensor] | None = None
        self._slid: list[Any] = []
        self._once = Once()
        self._generation: Generation | None = None
        self._armed: list[PrunedLayer] = []
        self._undo: list[Callable[[], Any]] = []
        self._instruction = InstructionWatch(
            self.family, model, self.needs, self.windows, self._lap, lambda: self._prefill
        )
        try:
            self._install()
        except BaseException:
            self.remove()
            raise
        _attached[model] = ref(self)

    def _install(self) -> None:
        multimodal, decoder = self.family.multimodal(self.model), self.family.decoder(self.model)
        self._wrap(multimodal, "get_image_features", self._vision.get_image_features)
        if hasattr(multimodal, "get_video_features"):
            self._wrap(multimodal, "get_video_features", self._vision.get_video_features)
        if self.family.deepstack is not None:
            self._wrap(decoder, self.family.deepstack, self._deepstack)
        self._wrap(self.model, "generate", self._generate)
        hooks = [
            self.model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            multimodal.register_forward_pre_hook(self._before_multimodal, with_kwargs=True),
            multimodal.register_forward_hook(self._after_multimodal, always_call=True, with_kwargs=True),
            decoder.register_forward_hook(self._after_decoder, with_kwargs=True),
        ]
        if EMBEDDINGS & self.needs:
            hooks.append(self.layers[0].register_forward_pre_hook(self._before_first_layer, with_kwargs=True))
        for index, layer in enumerate(self.layers):
            if index >= self.cut_layers[0] or self.windows[index] is not None:
                before = functools.partial(self._before_layer, index)
                hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        if INSTRUCTION_ROWS & self.needs:
            for layer in self.cut_layers:
                hooks += self._instruction.install(layer)
        self._undo += [hook.remove for hook in hooks]

    def _wrap(self, owner: nn.Module, name: str, wrapper: Callable[..., Any]) -> None:
        """Put a wrapper on this instance alone; signature and docstring stay, because generate() reads them."""
        original, own = getattr(owner, name), owner.__dict__.get(name)
        setattr(owner, name, functools.wraps(original)(functools.partial(wrapper, original)))
        self._undo.append(lambda: setattr(owner, name, own) if own is not None else delattr(owner, name))

    def remove(self) -> None:
        """Leave the model as it was before."""
        self._instruction.disarm()
        while self._undo:
            self._undo.pop()()
        self._prefill = None
        if attachment_of(self.model) is self:
            del _attached[self.model]

    def _lap(self, name: str) -> Any:
        return self.clock.lap(name) if self.clock is not None else nullcontext()

    # --- generate() -------------------------------------------------------------------------------------------------

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = named(original, args, kwargs)
        if _has_images(call):
            refusals.check_generate(call, self.model, self.cut_layers[-1])
            refusals.check_mask(call.get("attention_mask"))
        outer, self._generation = self._generation, Generation.of(call)
        try:
            return original(*args, **kwargs)
        finally:
            self._generation = outer

    # --- language model ---------------------------------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = named(module.forward, args, kwargs)
        if _has_images(call):
            refusals.check_forward(call, module.training)

    def _before_multimodal(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._prefill, self._cuts, self._sliding, self._slid, self._once = None, [], None, [], Once()
        call = named(module.forward, args, kwargs)
        images = _has_images(call)
        cache: Any = call.get("past_key_values")
        if not images and not pruned(cache):
            return None
        ids, embeds, mask = call.get("input_ids"), call.get("inputs_embeds"), call.get("attention_mask")
        prompt = ids if ids is not None else embeds
        if prompt is None:
            return None  # the model says what is missing
        refusals.check_mask(mask)
        if images:
            refusals.check_forward(call, module.training)
            refusals.check_cache(cache)
            cache = self._unslide(call, cache)
        batch, new, seen = prompt.shape[0], prompt.shape[1], cache.get_seq_length() if cache is not None else 0
        keys = key_mask(cache, mask, batch, new, prompt.device)
        if pruned(cache):
            self._armed = cache.layers
            for index, layer in enumerate(cache.layers):
                layer.armed = not layer.shifted or index >= self.cut_layers[0]
            if mask is not None or cache.layers[0].ragged:
                if self.family.grid_positions and call.get("position_ids") is None:
                    raise Refused(
                        f"{self.family.name} cannot tell positions from a mask over a pruned cache: pass position_ids"
                    )
                # what stands in the columns of removed tokens is never read
                call["attention_mask"] = torch.cat([keys.new_ones(batch, removed(cache)), keys], dim=1).long()
        columns = functools.partial(key_columns, cache, batch, new, prompt.device)
        if pruned(cache) and any(window is not None and seen + new > window for window in self.windows):
            self._sliding = keys, columns()
        if images:
            generation = self._generation
            prefill = self._prefill = Prefill(
                prompt,
                self.family.placeholders(self.model, ids, embeds),
                self.family.videos(self.model, ids, embeds),
                keys,
                columns(),
                new if generation is None else generation.prompt_columns(new, seen),
            )
            if (outputs := (call.get("mm_encoder_outputs") or {}).get("image")) is not None:
                parts = getattr(outputs, "ptprune", None) or (generation and generation.parts)
                if not parts:
                    raise Refused("the image features were encoded before the pruner was attached")
                self._start(prefill, parts)
        return (), call

    def _unslide(self, call: dict[str, Any], cache: Any) -> Any:
        """A cache whose layers hold everything during this prefill."""
        if any(self.windows):
            if cache is None and call.get("use_cache") is not False:
                cache = call["past_key_values"] = DynamicCache(config=self.model.config)
            if cache is not None:
                self._slid = unslide(cache)
        return cache

    def _receive_images(self, parts: list[EncodedImage]) -> None:
        """The images were encoded: inside this forward pass, or by generate() before it."""
        if self._prefill is not None and self._prefill.parts is None:
            self._start(self._prefill, parts)
        elif self._generation is not None:
            self._generation.parts = parts

    def _start(self, prefill: Prefill, parts: list[EncodedImage]) -> None:
        """The images are encoded: find them in the prompt."""
        with self._lap("select"):
            prefill.parts = parts
            prefill.find_images(self.family)
            if self._generation is not None and self._generation.selections is not None:
                # generate() without a cache repeats the prefill at each step: the prompt is the same, and so the choice
                prefill.selections = self._generation.selections

    def _before_first_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._prefill is not None:
            self._prefill.embeddings = args[0] if args else kwargs["hidden_states"]

    def _before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        prefill = self._prefill
        cache: Any = kwargs.get("past_key_values")
        hidden_states = args[0] if args else kwargs["hidden_states"]
        if prefill is not None and index in self.cut_layers:
            with self._lap("select"):
                if prefill.selections is None:
                    self._select(prefill, module, hidden_states, kwargs)
                hidden_states = self._drop(prefill, index, prefill.merge(hidden_states), cache)
        cut = self._cut
        implementation = str(self.model.config.get_text_config()._attn_implementation)
        stock, taken = kwargs, args[0] if args else kwargs["hidden_states"]
        if cut is not None:
            with self._lap("select"):
                kwargs = cut_layer_call(cut, kwargs, implementation, self._once)
        kwargs = self._restrict(kwargs, index, cut, hidden_states, implementation)
        kwargs = self._compact(kwargs, index, cut, hidden_states)
        if kwargs is stock and hidden_states is taken:
            return None
        kwargs.pop("hidden_states", None)
        return (hidden_states, *args[1:]), kwargs

    @property
    def _cut(self) -> Cut | None:
        """All that was dropped so far in this pass."""
        return self._cuts[-1][1] if self._cuts else None

    def _drop(self, prefill: Prefill, index: int, hidden_states: Tensor, cache: Any) -> Tensor:
        """Cut hidden states and the caches of the layers before ``index``."""
        prefill.make_cut()
        if (now := prefill.cut) is not None:
            hidden_states = now.states(hidden_states)
            for layer in cache.layers[:index] if cache is not None else ():
                gather_new(layer, prefill.past, now.index)
            self._cuts.append((index, now if self._cut is None else self._cut.then(now)))
        if index < self.cut_layers[-1]:
            self._prefill = prefill.next()
        prefill.embeddings = prefill.hidden_states = None
        return hidden_states

    def _restrict(
        self, kwargs: dict[str, Any], index: int, cut: Cut | None, hidden_states: Tensor, implementation: str
    ) -> dict[str, Any]:
        """Sliding windows over a cache that was pruned before this pass."""
        window = self.windows[index]
        if window is None or self._sliding is None:
            return kwargs
        (valid, columns), mask = self._sliding, kwargs.get("attention_mask")
        if cut is not None:
            valid, columns = cut.key_valid, cut.key_columns
        queries = columns[:, -hidden_states.shape[1] :]
        mask = self._once(
            (mask, cut, self._sliding), lambda: restrict(mask, window, queries, columns, valid, implementation)
        )
        return {**kwargs, "attention_mask": mask}

    def _select(self, prefill: Prefill, layer: nn.Module, hidden_states: Tensor, kwargs: dict[str, Any]) -> None:
        """Choose every image's tokens."""
        if INSTRUCTION_ROWS & self.needs and layer is self.layers[0]:
            self._instruction.score_before(prefill, layer, hidden_states, kwargs)
        if "hidden_states" in self.needs:
            prefill.hidden_states = hidden_states
        prefill.select(self.pruner.checked_select)
        layouts, selections = prefill.chosen()
        if self._generation is not None:
            self._generation.selections = selections
        valid = prefill.first.valid[:: prefill.copies]
        images = [replace(layout, sample=layout.sample // prefill.copies) for layout in layouts]
        self.pruner.record(functools.partial(write_report, images, selections, valid))

    def _compact(self, kwargs: dict[str, Any], index: int, cut: Cut | None, hidden_states: Tensor) -> dict[str, Any]:
        """Compact positions, now or by an earlier turn: as if the dropped tokens had never been there."""
        cache: Any = kwargs.get("past_key_values")
        position_ids = kwargs["position_ids"]
        earlier = cache.layers[index].shift if pruned(cache) and cache.layers[index].shifted else None
        now = cut.dropped_before if cut is not None and self.pruner.positions == "compact" else None
        if earlier is None and now is None:
            return kwargs

        def shifted() -> tuple[Tensor, Any]:
            positions = position_ids
            for shift in (now, None if earlier is None else earlier[:, None]):
                positions = positions if shift is None else positions - shift.to(positions.device)
            positions = positions.clamp(min=0)  # padding
            return positions, self.family.rotary(self.model, index, hidden_states, positions)

        inputs = (position_ids, kwargs.get("position_embeddings"), earlier, now)
        positions, embeddings = self._once(inputs, shifted)
        return {**kwargs, "position_ids": positions, "position_embeddings": embeddings}

    def _deepstack(
        self, original: Callable[..., Any], hidden_states: Tensor, visual_mask: Tensor, features: Tensor
    ) -> Any:
        """Visual features for the tokens that are still there."""
        if (cut := self._cut) is not None:
            with self._lap("select"):
                visual_mask, features = cut_features(cut, visual_mask, features)
        return original(hidden_states, visual_mask, features)

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._prefill is None:
            return None
        if (cut := self._cut) is None:
            slide(output.past_key_values, self._slid)
            return None
        with self._lap("select"):
            output.last_hidden_state = cut.restore(output.last_hidden_state)
            cache = output.past_key_values
            if cache is not None:
                mark_pruned(cache, removed(cache) + cut.removed, cut, self._shifts(cache))
        return output

    def _shifts(self, cache: Any) -> list[Tensor]:
        """For each layer how far its position ids lie behind the original ones after this pass."""
        none = torch.zeros(len(self._cuts[0][1].index), dtype=torch.long, device=self._cuts[0][1].index.device)
        before = [getattr(layer, "shift", none) for layer in cache.layers]
        after = list(before)
        for first, cut in self._cuts if self.pruner.positions == "compact" else ():
            dropped = cut.dropped.sum(dim=1)
            for index in range(first, len(after)):  # one tensor for many layers
                inputs = before[index], dropped
                after[index] = self._once(inputs, functools.partial(torch.add, *inputs))
        return after

    def _after_multimodal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Also after an exception: nothing of this forward pass stays behind."""
        self._prefill, self._cuts, self._once = None, [], Once()
        for layer in self._armed:
            layer.armed = False
        self._armed = []


def attachment_of(model: Model) -> Attachment | None:
    """The attachment at work on a model, if any."""
    reference = _attached.get(model)
    return None if reference is None else reference()


def _has_images(call: dict[str, Any]) -> bool:
    return call.get("pixel_values") is not None or (call.get("mm_encoder_outputs") or {}).get("image") is not None
