"""Checks that a model has everything that the hooks rely on, by its classes and modules.

It runs nothing and places no hook. A model that lacks something is refused, because a hook that relies on a changed
name would silently prune wrongly.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import transformers
from transformers import Cache, GenerationConfig
from transformers.cache_utils import DynamicLayer, StaticLayer

from ptprune import conventions
from ptprune.attach.tap import EAGER
from ptprune.errors import UnknownTransformers
from ptprune.families.base import Family, Model


def check_contract(model: Model, family: type[Family], windows: Sequence[int | None]) -> None:
    """Refuse a model that does not call its parts as this package expects.

    Args:
        windows: each language model layer's sliding window, see ``layer_windows``.

    Raises:
        UnknownTransformers: names the model class, transformers' version, what is missing, and the tested versions.
    """
    missing = [*_parts(model, family), *_layers(model, family, windows), *_vision(model, family), *_library()]
    if missing:
        raise UnknownTransformers(
            f"{type(model).__name__} of transformers {transformers.__version__} differs from what this version of "
            f"ptprune expects: {'; '.join(dict.fromkeys(missing))}. Nothing was attached. Tested with transformers "
            f"{conventions.TESTED}: install one of those, or a newer ptprune"
        )


def _lacking(module: Any, arguments: frozenset[str], *methods: str | None) -> Iterator[str]:
    """Describe the arguments, and the cache, that a module's forward does not take, and the methods that it lacks."""
    name = type(module).__name__
    for argument in sorted(arguments - {*conventions.arguments_of(module)}):
        yield f"{name} takes no argument {argument!r}"
    if conventions.cache_name(module) is None:
        yield f"{name} takes the cache under none of the names {', '.join(conventions.CACHE)}"
    for method in methods:
        if method is not None and not callable(getattr(module, method, None)):
            yield f"{name} has no method {method}"


def _parts(model: Model, family: type[Family]) -> Iterator[str]:
    yield from _lacking(model, conventions.MODEL_ARGUMENTS, "generate", conventions.PREPARE)
    yield from _lacking(family.multimodal(model), conventions.MODEL_ARGUMENTS, conventions.IMAGE_FEATURES)
    yield from _lacking(family.decoder(model), conventions.DECODER_ARGUMENTS, "rotary_emb", family.deepstack)


def _layers(model: Model, family: type[Family], windows: Sequence[int | None]) -> Iterator[str]:
    layers = family.decoder(model).layers
    if len(layers) != len(windows):
        yield f"the configuration tells of {len(windows)} language model layers, the model has {len(layers)}"
    for index, layer in enumerate(layers):
        yield from _lacking(layer, conventions.LAYER_ARGUMENTS)
        try:
            attention = family.text_attention(model, index)
        except AttributeError:
            yield f"{type(layer).__name__} {index} has no attention module where {family.name} expects it"
            continue
        yield from _lacking(attention, conventions.ATTENTION_ARGUMENTS)
        yield from _attention(attention)
        name, own = type(attention).__name__, getattr(attention, "sliding_window", None)
        if index < len(windows) and own is not None and own != windows[index]:
            yield f"{name} {index} has a sliding window of {own}, the configuration {windows[index]}"


def _attention(attention: Any) -> Iterator[str]:
    """Describe what keeps ``tap`` from reading the queries and keys that a module passes to its attention function."""
    name, kinds = type(attention).__name__, type(attention).__mro__
    if getattr(attention, "config", None) is None:
        yield f"{name} has no config with its attention implementation"
    if not any(hasattr(sys.modules[kind.__module__], EAGER) for kind in kinds):
        yield f"{name} has no {EAGER} in its file"
    # names that the class or a base class looks up; ``instruction`` checks during a pass that the function was called
    forwards = [inspect.unwrap(kind.__dict__["forward"]) for kind in kinds if "forward" in kind.__dict__]
    codes = [forward.__code__ for forward in forwards if hasattr(forward, "__code__")]  # of those in Python
    if not any("ALL_ATTENTION_FUNCTIONS" in code.co_names for code in codes):
        yield f"{name} does not look its attention function up in transformers' AttentionInterface"


def _vision(model: Model, family: type[Family]) -> Iterator[str]:
    try:
        attention = family.vision_attention(model, {})
    except AttributeError as error:
        yield f"the vision encoder's attention is not where {family.name} expects it ({error})"
    else:
        yield from _attention(attention)
    try:
        encoder = family.encoder(model)
        layers = () if encoder is None else encoder.layers
        for layer in layers:
            yield from _attention(getattr(layer, encoder.attention))  # type: ignore[union-attr]
    except AttributeError as error:
        yield f"the vision encoder is not built as {family.name} expects it ({error})"


def _library() -> Iterator[str]:
    """Describe methods of cache layers that ours do not know, or override in vain, and lost options."""
    for layer, overridden, inherited in (
        (DynamicLayer, conventions.CACHE_LAYER_OVERRIDDEN, conventions.CACHE_LAYER_INHERITED),
        (StaticLayer, conventions.STATIC_LAYER_OVERRIDDEN, conventions.STATIC_LAYER_INHERITED),
    ):
        public = {name for name in dir(layer) if not name.startswith("_")}
        for name in sorted(overridden - public):
            yield f"{layer.__name__} has no method {name}"
        for name in sorted(public - overridden - inherited):
            yield f"{layer.__name__} has an unknown method {name}"
    if not hasattr(Cache(layers=[]), "layers"):
        yield "Cache has no layers"
    known = GenerationConfig()
    for name in conventions.GENERATE_OPTIONS:
        if not hasattr(known, name):
            yield f"generate() has no option {name}"
