"""What the hooks rely on, looked up in the classes and modules of the very model that is attached to.

Nothing is run and no hook is placed. Where something is missing or unknown, the model is refused: a hook that trusts a
name which has changed would prune wrongly without a word.
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
    """Refuse a model that does not call its parts as this package knows it.

    Args:
        windows: how far back each language model layer sees, see ``layer_windows``.

    Raises:
        UnknownTransformers: naming the model class, transformers' version, what was looked for, and tested versions.
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
            f"{type(model).__name__} of transformers {transformers.__version__} is not as this version of ptprune "
            f"knows it: {'; '.join(dict.fromkeys(missing))}. Nothing was attached. Tested with transformers "
            f"{conventions.TESTED}: install one of those, or a newer ptprune"
        )


def _lacking(module: Any, needed: Iterable[str]) -> list[str]:
    """What a module's forward does not take, in words; the cache counts too."""
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
            found.append(f"{type(layer).__name__} {index} has no attention module where {family.name} has it")
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
    """Queries and keys are seen where a module hands over to its attention function, see ``rows``."""
    name, found = type(attention).__name__, []
    if getattr(attention, "config", None) is None:
        found.append(f"{name} has no config, which names its attention implementation")
    if not any(hasattr(sys.modules[kind.__module__], EAGER) for kind in type(attention).__mro__):
        found.append(f"{name} has no {EAGER} beside it")
    # what the class or one it derives from looks up; a pass itself tells whether it went there, see ``instruction``
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
    """Stands in for a forward that is no Python function: it looks nothing up."""


def _vision(model: Model, family: type[Family]) -> list[str]:
    try:
        attention = family.vision_attention(model, {})
    except AttributeError as error:
        return [f"the vision encoder's attention is not where {family.name} has it ({error})"]
    return _attention(attention)


def _cache() -> list[str]:
    """``PrunedLayer`` must answer for everything that a cache asks of its layers."""
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
