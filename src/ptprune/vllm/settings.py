"""What users may set: ``--hf-overrides '{"ptprune": {...}}'`` for the server, less than that for a request.

Servers that a pruner does not fit are refused before any weight is loaded, one line each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ptprune.settings import shown

if TYPE_CHECKING:
    from ptprune.methods.pyramid import PyramidTokenPruning

SETTING = "ptprune"
"""Key in the model's configuration and in a request's ``mm_processor_kwargs``."""

# Options of the method that cannot be served, and why.
_KNOWN_BEFORE = "vLLM must know how many tokens stay before the picture is encoded: use keep_ratio or keep_tokens"
_PATCHES = "vLLM's encoder takes whole tiles, so that no patch can be dropped inside it: leave it out"
FIXED = {
    **dict.fromkeys(("vision_layer", "vision_margin", "vision_floor"), _PATCHES),
    "left_out": "vLLM is given no tokens of tiles that are left out, as left_out='drop' does: leave it out",
    "tile_cache": "vLLM's own encoder cache keeps what was encoded: leave it out",
    "coverage": _KNOWN_BEFORE,
    "coverage_bounds": _KNOWN_BEFORE,
    "layer": "vLLM drops tokens before the language model, as layer=0 does: leave it out",
    "positions": "vLLM numbers the kept tokens anew, as positions='compact' does: leave it out",
    "window": "the served models have tiles: leave it out",
    **dict.fromkeys(("first_ratio", "second_layer"), "vLLM drops tokens once, before the language model: leave it out"),
}


def pruner_of(settings: Any) -> PyramidTokenPruning:
    """The method that a server's settings ask for, with one cut, before layer 0, and ``positions="compact"``.

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
        pruner = PyramidTokenPruning(**settings, layer=0, first_ratio=0, positions="compact")
    except ValueError as error:
        raise ValueError(f"ptprune: {error}") from None
    _check_tiles(pruner)
    return pruner


def thumbnail_first(pruner: PyramidTokenPruning) -> bool:
    """Whether the model encodes the thumbnail before tiles can be chosen; else they are chosen where requests come
    in."""
    from ptprune.scores import TILE_SCORES

    return "encoder_attention" in TILE_SCORES[pruner.tile_score].needs


def _check_tiles(pruner: PyramidTokenPruning) -> None:
    if pruner.tiles == "salient" and thumbnail_first(pruner):
        raise ValueError(
            f"ptprune: tiles='salient' cannot be chosen by tile_score={pruner.tile_score!r} here: vLLM must know how "
            "many tokens stay before the thumbnail is encoded: use tile_score 'detail', or tiles with a number"
        )


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


@dataclass(frozen=True)
class Request:
    """What a request asks for. None: nothing that the server does not do anyway.

    Attributes:
        ratio: of the tokens to keep.
        tiles, tile_threshold: which tiles are encoded, as in ``EncoderSettings``.
    """

    ratio: float | None = None
    tiles: str | int | None = None
    tile_threshold: float | None = None


REQUESTED = ("keep_ratio", "tiles", "tile_threshold")


def requested(pruner: PyramidTokenPruning, request: Any) -> Request:
    """What a request asks for, beside what the server does.

    Args:
        request: what stands under "ptprune" in its ``mm_processor_kwargs``; None: nothing.

    Raises:
        ValueError: on anything but a mapping of ``REQUESTED`` to values that the server's settings could have.
    """
    if request is None:
        return Request()
    if not isinstance(request, Mapping) or set(request) - {*REQUESTED}:
        raise ValueError(
            f"ptprune: a request may set {', '.join(REQUESTED[:-1])} and {REQUESTED[-1]}, as in "
            f'{{"keep_ratio": 0.25, "tiles": "salient"}}, and nothing else, got {shown(request)}'
        )
    changes: dict[str, Any] = dict(request)
    if "keep_ratio" in request:
        changes["keep_tokens"] = None
    try:
        asked = replace(pruner, **changes)
    except ValueError as error:
        raise ValueError(f"ptprune: {error}") from None
    _check_tiles(asked)
    ratio = None
    if "keep_ratio" in request and (pruner.keep_tokens is not None or asked.keep_ratio < pruner.keep_ratio):
        ratio = float(asked.keep_ratio)
    if _as_many(asked, pruner):
        return Request(ratio)
    return Request(ratio, asked.tiles, asked.tile_threshold if asked.tiles == "salient" else None)


def _as_many(asked: PyramidTokenPruning, server: PyramidTokenPruning) -> bool:
    """Whether the server's settings encode no more tiles of any picture than those that are asked for."""
    if asked.tiles == "all":
        return True
    if asked.tiles == "salient":
        return server.tiles == "salient" and asked.tile_threshold <= server.tile_threshold
    return isinstance(server.tiles, int) and int(asked.tiles) >= server.tiles


def tile_limits(pruner: PyramidTokenPruning, request: Request) -> list[tuple[str | int, float]]:
    """(tiles, tile_threshold) of the server and of a request, where they leave any tile out. The fewest tiles of both
    are encoded, because vLLM measures memory with what the server encodes."""
    limits = [(pruner.tiles, pruner.tile_threshold)]
    if request.tiles is not None:
        limits.append((request.tiles, request.tile_threshold or 0.0))
    return [limit for limit in limits if limit[0] != "all"]


def num_kept(pruner: PyramidTokenPruning, ratio: float | None, num_tokens: int, num_encoded: int) -> int:
    """How many of an image's tokens stay: what the request asks for, clamped to what the server keeps, because vLLM
    sizes its encoder cache by the latter, and to what is encoded."""
    most = pruner.num_kept(num_tokens)
    if ratio is not None:
        most = min(most, replace(pruner, keep_ratio=ratio, keep_tokens=None).num_kept(num_tokens))
    return min(most, num_encoded)
