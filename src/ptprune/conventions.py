"""What is known of transformers' calling conventions. No other module of this package names these arguments.

Names change: 5.24 renamed the cache that decoders, layers and attention modules take. When the next name changes,
``attach.contract`` refuses the model by what it looks up here, and this file is the one to edit. Tuples of names list
the newest first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import transformers
from packaging.version import Version
from torch import Tensor

from ptprune.errors import Refused

TESTED = "5.16 to 5.24"
"""Versions of transformers that the tests were run with."""

CACHE = ("cache", "past_key_values")  # the first since 5.24; old names go in 5.40, in generate() in 6.0
MASK = "attention_mask"
POSITIONS = "position_ids"
ROTARY = "position_embeddings"  # a tuple: cosines and sines
STATES = "hidden_states"
PER_TOKEN = (STATES, MASK, POSITIONS, ROTARY)  # arguments of a decoder layer that hold something for every token
# Modality -> output of its encoder: newer versions of generate() encode before they call the model. Pictures that were
# encoded and do not arrive under this name are noticed, see `attach.generation`.
ENCODED = "mm_encoder_outputs"
PIXELS = "pixel_values"

LAYER_ARGUMENTS = frozenset({STATES, MASK, ROTARY})  # Cohere2's layers take position ids in their **kwargs
ATTENTION_ARGUMENTS = frozenset({STATES})
DECODER_ARGUMENTS = frozenset({MASK, POSITIONS, "inputs_embeds"})
MODEL_ARGUMENTS = frozenset({"input_ids", "inputs_embeds", MASK, POSITIONS, PIXELS})

#: What ``PrunedLayer`` overrides of a layer of a cache, and what it inherits and answers for.
CACHE_LAYER_OVERRIDDEN = frozenset(
    {"update", "get_seq_length", "get_mask_sizes", "crop", "reset", "reorder_cache"}
    | {"batch_select_indices", "batch_repeat_interleave"}
)
CACHE_LAYER_INHERITED = frozenset(
    {"get_max_length", "get_max_cache_shape", "lazy_initialization", "offload", "prefetch"}
    | {"is_compileable", "is_croppable", "is_sliding", "supports_early_init"}
)

#: The same of ``PrunedStaticLayer``; ``crop`` is new in 5.2x, and works without.
STATIC_LAYER_OVERRIDDEN = frozenset({"get_seq_length", "get_mask_sizes", "reset", "reorder_cache"})
STATIC_LAYER_INHERITED = frozenset(
    {"update", "crop", "get_max_length", "get_max_cache_shape", "lazy_initialization", "offload", "prefetch"}
    | {"is_compileable", "is_croppable", "is_sliding", "supports_early_init"}
)

IMAGE_FEATURES, VIDEO_FEATURES = "get_image_features", "get_video_features"  # methods of the multimodal part

PREPARE = "prepare_inputs_for_generation"  # method of the model: generate() makes the arguments of each forward with it
FIRST = "is_first_iteration"  # its argument: whether this is the call that gets the pictures

REPEATS = ("num_beams", "num_return_sequences")  # options of generate() by which it repeats prompts and pictures
# Older versions repeat the tiles of a prompt as [t0, t0, t1, t1] where prompts are repeated as [p, p]: the stock model
# then answers about a picture that is put together wrongly.
REPEATS_TILES_WRONG = Version(transformers.__version__) < Version("5.19")

# Options of generate(), some of them of a forward call too, that are refused or looked at.
USE_CACHE = "use_cache"
PREFILL_CHUNK = "prefill_chunk_size"
CACHE_KIND = "cache_implementation"
CACHE_LENGTH = "max_cache_len"
EARLY_EXIT = "assistant_early_exit"
PER_LAYER_OUTPUTS = ("output_hidden_states", "output_attentions")
GENERATE_OPTIONS = (USE_CACHE, PREFILL_CHUNK, CACHE_KIND, CACHE_LENGTH, EARLY_EXIT, *PER_LAYER_OUTPUTS)


# Attribute of a model: the longest static cache that generate() made for it. Later ones are as long, so that the
# decoding step is compiled once.
LONGEST = "_previous_max_cache_length"


def arguments_of(module: Any) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, in order.

    A forward that hands on whatever it is given takes what that of its base class takes. The class is asked: the
    instance may carry a wrapper of accelerate's or ours.
    """
    kind: Any = type(module)
    return _arguments_of(kind)


@lru_cache(maxsize=256)
def _arguments_of(kind: Any) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if (function := base.__dict__.get("forward")) is not None:
            found = list(inspect.signature(function).parameters.values())[1:]
            names |= {one.name: None for one in found if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
            if not any(one.kind == one.VAR_KEYWORD for one in found):
                break
    return tuple(names)


def named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    if not args:
        return dict(kwargs)  # as nearly always: binding a signature costs more than all the rest of a hook
    arguments = dict(inspect.signature(function).bind_partial(*args, **kwargs).arguments)
    more = arguments.pop("kwargs", {})
    return {**arguments, **more}


def new_columns(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many new tokens a call of ``prepare_inputs_for_generation`` prepares."""
    if (number := kwargs.get("next_sequence_length")) is not None:
        return int(number)
    embeds = kwargs.get("inputs_embeds") if kwargs.get(FIRST) else None
    ids = args[0] if args else kwargs["input_ids"]
    return int((ids if embeds is None else embeds).shape[1])


def cache_name(module: Any) -> str | None:
    """The name under which a module takes the cache, or None."""
    return next((name for name in CACHE if name in arguments_of(module)), None)


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among a call's arguments, under any of its names, or None."""
    return next((arguments[name] for name in CACHE if arguments.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """The cache that an output of a model carries, or None. Never reads a deprecated alias."""
    known = getattr(type(output), "__dataclass_fields__", vars(output))
    return next((getattr(output, name) for name in CACHE if name in known), None)


def keep_cache(model: Any, cache: Any = None) -> dict[str, Any]:
    """Keyword arguments with which a model goes on with a cache, or begins one, and returns it."""
    name = cache_name(model) or CACHE[0]
    return {USE_CACHE: True} | ({} if cache is None else {name: cache})


@dataclass
class ModelCall:
    """A call of the model, of its multimodal part or of generate().

    Attributes:
        arguments: by name, as the caller gave them.
        cache_name: the name under which a cache is handed on.
    """

    arguments: dict[str, Any]
    cache_name: str = CACHE[0]

    @classmethod
    def of(cls, module: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModelCall:
        """A call of ``function``, a method of ``module``."""
        return cls(named(function, args, kwargs), cache_name(module) or CACHE[0])

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def cache(self) -> Any:
        return cache_in(self.arguments)

    @cache.setter
    def cache(self, cache: Any) -> None:
        for name in CACHE:
            self.arguments.pop(name, None)
        self.arguments[self.cache_name] = cache

    @property
    def mask(self) -> Any:
        return self.get(MASK)

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        self.arguments[MASK] = mask

    @property
    def positions(self) -> Any:
        return self.get(POSITIONS)

    @property
    def prompt(self) -> Tensor | None:
        """Token ids [batch, length], or embeddings [batch, length, d]."""
        names = ("input_ids", "inputs", "inputs_embeds")
        return next((value for name in names if (value := self.get(name)) is not None), None)

    @property
    def encoded_images(self) -> Any:
        """The image encoder's output, where the images were encoded before this call."""
        return (self.get(ENCODED) or {}).get("image")

    @property
    def has_images(self) -> bool:
        return self.get(PIXELS) is not None or self.encoded_images is not None

    @property
    def has_cache(self) -> bool:
        """Whether the call keeps a cache, or leaves it to the model's configuration."""
        return self.get(USE_CACHE) is not False

    def option(self, name: str, *configs: Any) -> Any:
        """An option of the call: its argument, or the first configuration that sets it."""
        given = [self.get(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in given if value is not None), None)


@dataclass
class LayerCall:
    """A call of a decoder layer. ``write`` gives back what the layer was called with, and what was changed since.

    Attributes:
        states: [batch, length, d].
        mask: None (causal), [batch, keys], or [batch or 1, 1, length, keys] boolean or additive.
        positions: LongTensor [batch or 1, length], with a first dimension of 3 or 4 where positions are those of a
            grid; or None.
        rotary: cosines and sines, each [batch or 1, length, d], or with a first dimension of 3; or None.
        cache: of the whole model, or None.
        rest: all other arguments.
    """

    states: Tensor
    mask: Tensor | None
    positions: Tensor | None
    rotary: tuple[Tensor, ...] | None
    cache: Any
    rest: dict[str, Any] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    cache_name: str = CACHE[0]

    @classmethod
    def read(cls, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LayerCall:
        """From what a forward pre-hook of ``layer`` is given."""
        given = {**dict(zip(arguments_of(layer), args, strict=False)), **kwargs}
        rest = {name: value for name, value in given.items() if name not in PER_TOKEN and name not in CACHE}
        mask, positions, rotary = (given.get(name) for name in (MASK, POSITIONS, ROTARY))
        cache, name = cache_in(given), cache_name(layer) or CACHE[0]
        return cls(given[STATES], mask, positions, rotary, cache, rest, frozenset(given), name)

    def write(self) -> tuple[tuple[Tensor], dict[str, Any]]:
        """Positional and keyword arguments for the layer; only those that it was called with."""
        per_token = {MASK: self.mask, POSITIONS: self.positions, ROTARY: self.rotary}
        kwargs = self.rest | {name: value for name, value in per_token.items() if name in self.names}
        if self.names.intersection(CACHE):
            kwargs[self.cache_name] = self.cache
        return (self.states,), kwargs

    def alone(self) -> dict[str, Any]:
        """Keyword arguments to run the layer by itself, on other states, without touching the cache."""
        kwargs = {**self.write()[1], self.cache_name: None}
        return kwargs | ({USE_CACHE: False} if USE_CACHE in self.names else {})

    def unknown_per_token(self, length: int) -> list[str]:
        """Names of arguments besides the known ones that hold something for each of ``length`` tokens."""
        tensors = ((name, value) for name, value in self.rest.items() if isinstance(value, Tensor))
        return sorted(name for name, value in tensors if length in value.shape[:-1])


def layer_windows(config: Any) -> list[int | None]:
    """How far back each language model layer sees, itself included; None: all the way.

    Raises:
        Refused: on layers that are no plain attention.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers
    if strange := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise Refused(f"language models with {', '.join(strange)} layers are not supported")
    return [window if kind == "sliding_attention" else None for kind in kinds]
