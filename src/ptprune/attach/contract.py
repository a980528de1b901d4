"""Checks that a model has everything that the hooks rely on, by its classes and modules.

It runs nothing and places no hook. A model that lacks something is refused, because a hook that relies on a changed
name would silently prune wrongly.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import transformers
from transformers import Cache, GenerationConfig
from transformers.cache_utils import DynamicLayer

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
    missing = [
        *_model(model, family),
        *_decoder(family.decoder(model)),
        *_layers(model, family, windows),
        *_vision(model, family),
        *_cache(),
        *_options(),
    ]
    if missing:
        raise UnknownTransformers(
            f"{type(model).__name__} of transformers {transformers.__version__} differs from what this version of "
            f"ptprune expects: {'; '.join(dict.fromkeys(missing))}. Nothing was attached. Tested with transformers "
            f"{conventions.TESTED}: install one of those, or a newer ptprune"
        )


def _lacking(module: Any, needed: Iterable[str]) -> list[str]:
    """Describe the needed arguments, and the cache, that a module's forward does not take."""
    name = type(module).__name__
    lacking = sorted(set(needed) - set(conventions.arguments_of(module)))
    found = [f"{name} takes no argument {argument!r}" for argument in lacking]
    if conventions.cache_name(module) is None:
        found.append(f"{name} takes the cache under none of the names {', '.join(conventions.CACHE)}")
    return found


def _model(model: Model, family: type[Family]) -> list[str]:
    multimodal = family.multimodal(model)
    found = []
    for module in (model, multimodal):
        found += _lacking(module, conventions.MODEL_ARGUMENTS)
    for method in (conventions.IMAGE_FEATURES, *([family.deepstack] if family.deepstack else [])):
        owner = multimodal if method == conventions.IMAGE_FEATURES else family.decoder(model)
        if not callable(getattr(owner, method, None)):
            found.append(f"{type(owner).__name__} has no method {method}")
    if not callable(getattr(model, "generate", None)):
        found.append(f"{type(model).__name__} has no method generate")
    return found


def _decoder(decoder: Any) -> list[str]:
    found = _lacking(decoder, conventions.DECODER_ARGUMENTS)
    if not callable(getattr(decoder, "rotary_emb", None)):
        found.append(f"{type(decoder).__name__} has no rotary_emb")
    return found


def _layers(model: Model, family: type[Family], windows: Sequence[int | None]) -> list[str]:
    found, layers = [], family.decoder(model).layers
    if len(layers) != len(windows):
        found.append(f"the configuration tells of {len(windows)} language model layers, the model has {len(layers)}")
    for index, layer in enumerate(layers):
        found += _lacking(layer, conventions.LAYER_ARGUMENTS)
        try:
            attention = family.text_attention(model, index)
        except AttributeError:
            found.append(f"{type(layer).__name__} {index} has no attention module where {family.name} expects it")
            continue
        found += _lacking(attention, conventions.ATTENTION_ARGUMENTS)
        found += _attention(attention)
        own = getattr(attention, "sliding_window", None)
        if index < len(windows) and own is not None and own != windows[index]:
            found.append(
                f"{type(attention).__name__} {index} has a sliding window of {own}, the configuration {windows[index]}"
            )
    return found


def _attention(attention: Any) -> list[str]:
    """Describe what keeps ``tap`` from reading the queries and keys that a module passes to its attention function."""
    name, found = type(attention).__name__, []
    if getattr(attention, "config", None) is None:
        found.append(f"{name} has no config with its attention implementation")
    if not any(hasattr(sys.modules[kind.__module__], EAGER) for kind in type(attention).__mro__):
        found.append(f"{name} has no {EAGER} in its file")
    # names that the class or a base class looks up; ``instruction`` checks during a pass that the function was called
    looked_up = {
        word
        for kind in type(attention).__mro__
        if (function := kind.__dict__.get("forward")) is not None
        for word in getattr(inspect.unwrap(function), "__code__", _looked_up.__code__).co_names
    }
    if "ALL_ATTENTION_FUNCTIONS" not in looked_up:
        found.append(f"{name} does not look its attention function up in transformers' AttentionInterface")
    return found


def _looked_up() -> None:
    """Replaces a forward that is no Python function: looks nothing up."""


def _vision(model: Model, family: type[Family]) -> list[str]:
    try:
        attention = family.vision_attention(model, {})
    except AttributeError as error:
        return [f"the vision encoder's attention is not where {family.name} expects it ({error})"]
    return _attention(attention)


def _cache() -> list[str]:
    """Describe methods of cache layers that ``PrunedLayer`` does not know, or overrides in vain."""
    public = {name for name in dir(DynamicLayer) if not name.startswith("_")}
    overridden = conventions.CACHE_LAYER_OVERRIDDEN
    found = [f"DynamicLayer has no method {name}" for name in sorted(overridden - public)]
    for name in sorted(public - overridden - conventions.CACHE_LAYER_INHERITED):
        found.append(f"DynamicLayer has an unknown method {name}")
    if not hasattr(Cache(layers=[]), "layers"):
        found.append("Cache has no layers")
    return found


def _options() -> list[str]:
    known = GenerationConfig()
    return [f"generate() has no option {name}" for name in conventions.GENERATE_OPTIONS if not hasattr(known, name)]
