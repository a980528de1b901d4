"""What cannot be pruned right is refused here, before anything is computed.

Each check raises ``Refused``, which names the implementation, option, argument, cache or shape, and what to do instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ptprune import conventions
from ptprune.attach.cache import PrunedLayer, seen_by
from ptprune.attach.compiled import check_not_compiled
from ptprune.attach.generation import Generation
from ptprune.attach.static import held_by, is_static
from ptprune.conventions import CACHE_KIND, EARLY_EXIT, PER_LAYER_OUTPUTS, PREFILL_CHUNK, USE_CACHE, ModelCall
from ptprune.errors import Refused
from ptprune.families.base import Encoder, Family, Model

if TYPE_CHECKING:
    from ptprune.attach.setup import Method, Setup


def check_model(model: Model, family: type[Family], layers: Sequence[int], positions: str) -> None:
    """Refuse a model that hooks cannot follow, or that the pruner's settings do not fit.

    Raises:
        AttachError: on a compiled model.
        Refused: on an attention implementation without tensor masks, ``layers`` to drop tokens before that do not
            increase or lie beyond the model, or compact positions where positions are those of a grid.
    """
    check_not_compiled(model)
    check_attention(str(model.config.get_text_config()._attn_implementation))
    num_layers = len(family.decoder(model).layers)
    if layers and layers[-1] >= num_layers:
        raise Refused(f"layer must be below the model's {num_layers} language model layers, got {layers[-1]}")
    if not layers or list(layers) != sorted({*layers}) or layers[0] < 0:
        raise Refused(f"the layers to drop tokens before must increase from 0, got {[*layers]}")
    if positions == "compact" and family.grid_positions:
        raise Refused(
            f"positions='compact' is not defined for {family.name}, whose position ids tell row and column: use "
            "'original'"
        )


def check_encoder(model: Model, family: type[Family], settings: Method) -> Encoder:
    """Where a model's tiles are encoded. Refuse settings that need what the model has not.

    Raises:
        Refused: on a family whose pictures are not tiles that are encoded apart, or a layer that the encoder has not.
    """
    encoder, wanted = family.encoder(model), "a tile cache"
    for name, default in (("tiles", "all"), ("tile_batch", None), ("vision_layer", None)):
        if (value := getattr(settings, name)) != default:
            wanted = f"{name}={value!r}"
            break
    if encoder is None:
        raise Refused(f"{wanted} is not supported for {family.name}: its pictures are not encoded as separate tiles")
    if (layer := settings.vision_layer) is not None:
        if encoder.mixed:
            raise Refused(
                f"vision_layer={layer} is not supported for {family.name}, which mixes neighbouring patches after they "
                "are encoded: leave it None"
            )
        if settings.needs_grids:
            raise Refused(
                f"vision_layer={layer} drops tokens inside tiles, and {type(settings).__name__} with these settings "
                "needs whole tiles: leave it None"
            )
        last = next(i for i, each in enumerate(encoder.layers) if _holds(each, family.vision_attention(model, {})))
        if layer > last:
            raise Refused(f"vision_layer must be at most {last}, the layer whose features are used, got {layer}")
    return encoder


def _holds(layer: Model, attention: Model) -> bool:
    return any(module is attention for module in layer.modules())


def check_attention(implementation: str) -> None:
    """Refuse attention implementations without tensor masks; users may change theirs between calls."""
    if implementation not in ("eager", "sdpa") and "flash" not in implementation:
        raise Refused(
            f"attention implementation {implementation!r} is not supported: use 'sdpa', 'eager' or flash attention"
        )


def check_generate(call: ModelCall, setup: Setup) -> None:
    """Refuse the options of generate() under which a pruned prefill cannot be right."""
    family, option = setup.family, functools.partial(generate_option, call, setup.model)

    if option(USE_CACHE) is False and setup.cut_layers[-1] > 0:
        raise Refused(
            "use_cache=False would let generated tokens see dropped tokens again in the layers before the cut: "
            "leave it on, or prune with layer=0 (below a quarter, ptp also needs first_ratio=0)"
        )
    if option(PREFILL_CHUNK) is not None:
        raise Refused("prefill_chunk_size splits the prompt, so its tokens cannot be ranked: leave it unset")
    if (kind := option(CACHE_KIND)) not in (None, "dynamic", "dynamic_full", "static"):
        raise Refused(f"cache_implementation={kind!r} is not supported: use 'dynamic' or 'static'")
    if option(EARLY_EXIT) is not None:
        raise Refused("assistant_early_exit drafts with the pruned model's own first layers: use another assistant")
    if conventions.REPEATS_TILES_WRONG and not family.grid_positions:
        for name in conventions.REPEATS:
            if (option(name) or 1) > 1:
                raise Refused(
                    f"{name}={option(name)}: this version of transformers repeats the tiles of a picture in a wrong "
                    "order, pruned or not: install transformers 5.19 or newer"
                )
    _check_outputs(option)
    if is_static(cache := call.cache):
        generation, prompt = Generation.of(call), call.prompt
        new = 0 if generation is None or prompt is None else generation.prompt_columns(prompt.shape[1], seen_by(cache))
        check_static(setup, cache, new)
        return
    if option(CACHE_KIND) == "static":
        check_static(setup, None)
    check_cache(cache)


def generate_option(call: ModelCall, model: Model, name: str) -> Any:
    """An option of a call of generate(), by its argument, its configuration, or that of the model."""
    return call.option(name, call.get("generation_config"), getattr(model, "generation_config", None))


def check_forward(call: ModelCall, model: Model, training: bool) -> None:
    """Refuse a forward call with images that cannot be pruned right."""
    if training:
        raise Refused("the model is in training mode: pruning is for inference, call model.eval()")
    if call.get("labels") is not None:
        raise Refused("labels: a loss over a prompt with dropped tokens is not defined, detach the pruner to train")
    configs = model.config, model.config.get_text_config()
    _check_outputs(lambda name: call.option(name, *configs))


def check_images(call: ModelCall, model: Model, training: bool) -> None:
    """Refuse a forward pass with images that cannot be pruned right, or whose cache cannot shrink."""
    check_forward(call, model, training)
    check_cache(call.cache)


def _check_outputs(option: Callable[[str], Any]) -> None:
    for name in PER_LAYER_OUTPUTS:
        if option(name):
            raise Refused(
                f"{name}: layers behind the cut see fewer tokens, so what they return would not fit the prompt: leave "
                "it off, or detach the pruner"
            )


def check_static(setup: Setup, cache: Any, new: int = 0) -> None:
    """Refuse what is not right in static buffers.

    Args:
        cache: None: generate() has not made it yet.
        new: how many tokens come.
    """
    if setup.compact:
        raise Refused("positions='compact' needs a hook at every step, which a static cache has not: use 'original'")
    if "flash" in setup.implementation:
        raise Refused(f"{setup.implementation} does not take masks of static buffers: use 'sdpa', or a dynamic cache")
    if cache is None:
        return
    if cache.offloading:
        raise Refused("an offloaded cache is not supported: pass a plain StaticCache, or use 'static'")
    length, held = min(layer.get_max_length() for layer in cache.layers), held_by(cache)
    if held + new > length:
        raise Refused(
            f"the static cache has room for {length} tokens and holds {held}: {new} more do not fit, make it longer"
        )
    for layer, window in zip(cache.layers, setup.windows, strict=False):
        if window is not None and layer.get_max_length() >= window:
            raise Refused(
                f"a static cache of {layer.get_max_length()} tokens or more reaches past a sliding window of {window}: "
                "use a dynamic cache, or one that is shorter than the window"
            )


def check_cache(cache: Any) -> None:
    """Refuse caches that cannot shrink."""
    if cache is None:
        return
    layers, can_shrink = getattr(cache, "layers", None) or [], (DynamicLayer, DynamicSlidingWindowLayer, PrunedLayer)
    if not isinstance(cache, Cache) or any(type(layer) not in can_shrink for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers} - {kind.__name__ for kind in can_shrink})
        raise Refused(
            f"{type(cache).__name__} ({', '.join(kinds)}) cannot shrink: pass a DynamicCache, a StaticCache, or none"
        )
    for layer in layers:
        sliding = isinstance(layer, DynamicSlidingWindowLayer) and layer.keys is not None
        if sliding and (held := layer.keys.shape[2]) < (seen := layer.get_seq_length()):
            raise Refused(
                f"the cache has seen {seen} tokens, of which its sliding layers hold the last {held}: pictures can be "
                "pruned only while nothing has left the window, start from a new cache"
            )
    if cache.offloading:
        raise Refused("an offloaded cache is not supported: pass a plain DynamicCache or none")


def refuse_encoded() -> NoReturn:
    """Refuse image features of an encoder that nobody watched: the scores come from what it computes on the way.

    generate() has encoded the pictures when it calls a function that is given as ``custom_generate``.
    """
    raise Refused(
        "the image features were encoded before the pruner was attached, so nothing is known about the tokens: attach "
        "it around generate(), as in `with pruner(model): model.generate(..., custom_generate=function)`, not inside "
        "the function"
    )


def check_mask(attention_mask: Any) -> None:
    """Refuse masks other than 2D."""
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2):
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise Refused(f"attention_mask must be 2D [batch, length] while a pruner is attached, got {shape}")
