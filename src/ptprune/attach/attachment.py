"""Puts a pruner's wrappers on a model and removes them. What happens inside a call is in ``forward``.

Five methods are wrapped on the instance: ``generate`` and the model's ``forward``, which refuse calls or admit them one
at a time; ``prepare_inputs_for_generation``, in which generate() makes masks for a static cache; the multimodal part's
``forward``, where a ``Pass`` begins and ends; and its ``get_image_features``, which generate() calls before that.
A pass places all other hooks and removes them. In a graph that is traced both ``forward`` only pass on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from ptprune.attach import refusals
from ptprune.attach.cache import pruned
from ptprune.attach.compiled import check_not_compiling, check_outer, check_traced
from ptprune.attach.forward import Pass
from ptprune.attach.generation import Generation
from ptprune.attach.setup import Method, Setup
from ptprune.attach.static import Lengths, check_windows, fitting, is_static, making_masks
from ptprune.attach.tile_cache import TileCache
from ptprune.attach.vision import VisionWatch
from ptprune.attach.whole import WholePass
from ptprune.attach.wrapping import wrap
from ptprune.clock import Clock
from ptprune.conventions import (
    CACHE_LENGTH,
    FIRST,
    IMAGE_FEATURES,
    PREPARE,
    VIDEO_FEATURES,
    ModelCall,
    new_columns,
)
from ptprune.errors import AttachError
from ptprune.families.base import Model
from ptprune.families.encoded import Encoded, EvidenceRequest
from ptprune.families.prompt_image import PromptImage

# Weak references, because the model's wrappers own the attachment: it must die with the model.
_attached: WeakKeyDictionary[nn.Module, ReferenceType[Attachment]] = WeakKeyDictionary()
_placing = threading.RLock()


class Attachment:
    """A pruner's wrappers on a model. They are removed when the last block ends.

    The model handles one call at a time: a call from another thread waits.

    Attributes:
        entries: how many blocks and ``attach`` calls use it.

    Raises:
        UnsupportedModel: on a model of no supported family.
        AttachError: if the model has a pruner already, or is compiled.
        Refused: if this pruner's settings do not fit the model.
        UnknownTransformers: on a version of transformers that the hooks do not know.
    """

    def __init__(
        self, pruner: Method, model: Model, clock: Clock | None = None, cache: TileCache | None = None
    ) -> None:
        self.setup = Setup.of(pruner, model, clock, cache)
        self.pruner, self.model = pruner, model
        self.entries = 1
        self._multimodal = self.setup.family.multimodal(model)
        wanted = EvidenceRequest(self.setup.needs, pruner.window)
        self._vision = VisionWatch(self.setup, wanted, self._receive_images, self._find_images)
        self._lock = threading.RLock()
        self._depth = 0  # nested calls in progress, all in the thread that holds the lock
        self._pass: Pass | WholePass | None = None
        self._generation: Generation | None = None
        with _placing:
            if attachment_of(model) is not None:
                raise AttachError(f"a pruner is attached to this {type(model).__name__} already: detach it first")
            with ExitStack() as undo:  # after an exception everything is taken off again
                for owner, name, wrapper, traced in (
                    (self._multimodal, IMAGE_FEATURES, self._image_features, None),
                    (self._multimodal, VIDEO_FEATURES, self._vision.video_features, None),
                    (self._multimodal, "forward", self._forward_multimodal, check_traced),
                    (model, "forward", self._forward, check_outer),
                    (model, PREPARE, self._prepare, None),
                    (model, "generate", self._generate, None),
                    *self._encoder_wrappers(),
                ):
                    if name != VIDEO_FEATURES or hasattr(owner, name):
                        undo.callback(wrap(owner, name, wrapper, traced))
                self._undo = undo.pop_all()
            _attached[model] = ref(self)
            pruner.hold(1)

    def _encoder_wrappers(self) -> Iterator[tuple[Any, str, Callable[..., Any], None]]:
        if (encoder := self.setup.encoder) is not None:
            yield encoder.tower, "forward", self._vision.encode, None
            yield encoder.projector, "forward", self._vision.project, None

    def leave(self) -> None:
        """End one use. The last one waits for the calls of other threads and then removes the wrappers.

        Raises:
            AttachError: if the last one ends inside a call of the model.
        """
        with _placing:
            if self.entries > 1:
                self.entries -= 1
                return
        with self._lock, _placing:
            if self._depth:
                raise AttachError("the pruner cannot be detached inside a call of the model that it prunes")
            self.entries -= 1
            if self.entries <= 0:  # another thread may have joined while this one waited
                self._undo.close()
                self.pruner.hold(-1)
                if attachment_of(self.model) is self:
                    del _attached[self.model]

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = ModelCall.of(self.model, original, args, kwargs)
        if call.has_images:
            check_not_compiling()
            refusals.check_generate(call, self.setup)
            refusals.check_mask(call.mask)
        with self._one_at_a_time(), ExitStack() as undo:
            outer, generation = self._generation, Generation.of(call)
            if call.has_images:
                self.pruner.forget()
                if generation is not None and call.cache is None:
                    given = refusals.generate_option(call, self.model, CACHE_LENGTH) is not None
                    generation.lengths = Lengths(self.model, given)
                    undo.enter_context(generation.lengths.needed())
            self._generation = generation
            try:
                return original(*args, **kwargs)
            finally:
                self._generation = outer
                if generation is not None and generation.stand_in is not None:
                    generation.stand_in.put_back()

    def _prepare(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What generate() calls before each forward pass. For a static cache it makes masks of attention there."""
        call = ModelCall(kwargs)
        cache = call.cache
        if not is_static(cache):
            return original(*args, **kwargs)
        new = new_columns(args, kwargs)
        if self._generation is not None and call.has_images and call.get(FIRST):
            refusals.check_static(self.setup, cache, new)
            self._generation.begin_static(cache)
            return original(*args, **kwargs)
        if not pruned(cache):
            return original(*args, **kwargs)
        check_windows(cache, self.setup.windows, new)
        with making_masks(cache):
            call.mask = fitting(cache, call.mask)
            return original(*args, **kwargs)

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = ModelCall.of(self.model, original, args, kwargs)
        if call.has_images:
            check_not_compiling()
            refusals.check_forward(call, self.model, self.model.training)
        with self._one_at_a_time():
            return original(*args, **kwargs)

    def _forward_multimodal(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = ModelCall.of(self._multimodal, original, args, kwargs)
        with self._one_at_a_time():
            if self._generation is not None:
                self._generation.check_arrival(call.has_images)
            if not Pass.is_needed(call):
                return original(*args, **kwargs)
            check_not_compiling()
            if call.has_images and self._generation is None:
                self.pruner.forget()
            # pruned caches need their masks and positions; for static ones dynamic layers stand in
            static = is_static(call.cache) or (self._generation is not None and self._generation.stand_in is not None)
            whole = self._vision.later and not static and not pruned(call.cache)
            outer, self._pass = self._pass, (WholePass if whole else Pass)(self.setup, self._generation)
            try:
                with self.setup.lap("select"):
                    self._pass.begin(call, self.model.training)
                return original(**call.arguments)
            finally:
                self._pass.close()
                self._pass = outer

    def _image_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        check_not_compiling()
        with self._one_at_a_time():  # else a running call would take another thread's pictures for its own
            return self._vision.image_features(original, *args, **kwargs)

    def _receive_images(self, encoded: Sequence[Encoded]) -> None:
        """Pass the encoded images on: to the running forward pass, or to generate(), which encodes them before it."""
        if self._pass is not None and self._pass.waits_for_images:
            self._pass.receive(encoded)
        elif self._generation is not None:
            self._generation.encoded = encoded

    def _find_images(self, encoded: Sequence[Encoded]) -> list[PromptImage] | None:
        """The images of the prompt of the running forward pass, or of generate(); None where neither runs."""
        family, prompt = self.setup.family, None
        if self._pass is not None:
            prompt = self._pass.prompt if isinstance(self._pass, Pass) and self._pass.waits_for_images else None
        elif self._generation is not None:
            prompt = self._generation.new_prompt(family, self.model)
        return None if prompt is None else prompt.find_images(family, encoded)[0]


def join(pruner: Method, model: Model, clock: Clock | None = None, cache: TileCache | None = None) -> Attachment:
    """Use the pruner's existing attachment to a model once more, or create it.

    Raises:
        AttachError: also if the existing one has another tile cache.
        UnsupportedModel, AttachError, Refused, UnknownTransformers: see ``Attachment``.
    """
    with _placing:
        active = attachment_of(model)
        if active is not None and active.pruner is pruner:
            if cache is not active.setup.cache:
                raise AttachError("the pruner is attached to this model with another tile cache: detach it first")
            active.entries += 1
            return active
        return Attachment(pruner, model, clock, cache)


def attachment_of(model: Model) -> Attachment | None:
    """The attachment on a model, if any."""
    reference = _attached.get(model)
    return None if reference is None else reference()
