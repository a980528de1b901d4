"""What users may set: ``--hf-overrides '{"ptprune": {...}}'`` for the server, a ratio for a request.

Servers that a pruner does not fit are refused before any weight is loaded, one line each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ptprune.settings import shown

if TYPE_CHECKING:
    from ptprune.methods.pyramid import PyramidTokenPruning

SETTING = "ptprune"
"""Key in the model's configuration and in a request's ``mm_processor_kwargs``."""

# Options of the method that cannot be served, and why.
_KNOWN_BEFORE = "vLLM must know how many tokens stay before the picture is encoded: use keep_ratio or keep_tokens"
_ENCODED = "the plugin lets vLLM encode every tile whole: leave it out"
FIXED = {
    **dict.fromkeys(
        ("tiles", "tile_threshold", "tile_score", "left_out", "tile_batch", "vision_layer", "vision_margin"), _ENCODED
    ),
    "coverage": _KNOWN_BEFORE,
    "coverage_bounds": _KNOWN_BEFORE,
    "layer": "vLLM drops tokens before the language model, as layer=0 does: leave it out",
    "positions": "vLLM numbers the kept tokens anew, as positions='compact' does: leave it out",
    "window": "the served models have tiles: leave it out",
}


def pruner_of(settings: Any) -> PyramidTokenPruning:
    """The method that a server's settings ask for, with ``layer=0`` and ``positions="compact"``.

    Raises:
        ValueError: on anything but a mapping of options that can be served; names the option.
    """
    from ptprune.methods.pyramid import PyramidTokenPruning

    if not isinstance(settings, Mapping):
        raise ValueError(f'ptprune: the setting must be an object such as {{"keep_ratio": 0.5}}, got {shown(settings)}')
    allowed = [field.name for field in fields(PyramidTokenPruning) if field.name not in FIXED]
    for name in settings:
        if name in FIXED:
            raise ValueError(f"ptprune: {name} cannot be set here: {FIXED[name]}")
        if name not in allowed:
            raise ValueError(f"ptprune: no option is called {shown(name)}, there are {', '.join(allowed)}")
    try:
        return PyramidTokenPruning(**settings, layer=0, positions="compact")
    except ValueError as error:
        raise ValueError(f"ptprune: {error}") from None


def check_server(vllm_config: Any, guided: bool) -> None:
    """Refuse a configuration in which pruning would not happen, or not right.

    Args:
        guided: whether the question counts.

    Raises:
        ValueError: naming the option and what to do instead.
    """
    multimodal, compilation = vllm_config.model_config.multimodal_config, vllm_config.compilation_config
    graphs, compiled = compilation.cudagraph_mm_encoder, compilation.compile_mm_encoder
    split, lora = multimodal.mm_encoder_tp_mode == "data", vllm_config.lora_config
    question = "or leave the question out ('instruction': 'none')"
    refused = {
        "CUDA graphs of the vision encoder replay without looking at it: turn cudagraph_mm_encoder off": graphs,
        "a compiled vision encoder hides its attention: turn compile_mm_encoder off": compiled,
        "--mm-encoder-tp-mode data shares out an image's tiles, which are compared here: use 'weights'": split,
        f"--mm-encoder-only has no language model to read the question: serve all of it, {question}": (
            guided and multimodal.mm_encoder_only
        ),
        f"LoRA adapters change the layer that reads the question: serve without --enable-lora, {question}": (
            guided and lora is not None
        ),
        "LoRA adapters of the vision encoder count unpruned tokens: turn enable_tower_connector_lora off": (
            lora is not None and lora.enable_tower_connector_lora
        ),
    }
    for reason, holds in refused.items():
        if holds:
            raise ValueError(f"ptprune: {reason}")


def requested_ratio(pruner: PyramidTokenPruning, request: Any) -> float | None:
    """The keep ratio that a request asks for, or None where it asks for nothing that the server does not do anyway.

    Args:
        request: what stands under "ptprune" in its ``mm_processor_kwargs``; None: nothing.

    Raises:
        ValueError: on anything but ``{"keep_ratio": r}`` with a ratio over 0 and at most 1.
    """
    if request is None:
        return None
    if not isinstance(request, Mapping) or set(request) - {"keep_ratio"}:
        raise ValueError(
            f'ptprune: a request may set its ratio, as {{"keep_ratio": 0.25}}, and nothing else, got {shown(request)}'
        )
    if "keep_ratio" not in request:
        return None
    ratio = request["keep_ratio"]
    try:
        replace(pruner, keep_ratio=ratio, keep_tokens=None)
    except ValueError as error:
        raise ValueError(f"ptprune: {error}") from None
    return None if pruner.keep_tokens is None and ratio >= pruner.keep_ratio else float(ratio)


def num_kept(pruner: PyramidTokenPruning, ratio: float | None, num_tokens: int) -> int:
    """How many of an image's tokens stay: what the request asks for, clamped to what the server keeps, because vLLM
    sizes its encoder cache by the latter."""
    most = pruner.num_kept(num_tokens)
    if ratio is None:
        return most
    return min(most, replace(pruner, keep_ratio=ratio, keep_tokens=None).num_kept(num_tokens))
