"""Looks at a checkpoint's files before transformers does, and refuses what could run code, or claims what is not there.

A checkpoint is data from anywhere. Its configuration may name classes, code of its own, kernels and sizes; transformers
follows some of these. Here all that it would follow has to be from a fixed list, and sizes have to fit the weights.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptprune.bounds import MAX_LAYERS, MAX_SIDE, MAX_TEMPLATE, MAX_TILES, MAX_TOKENS
from ptprune.conventions import USE_CACHE
from ptprune.errors import first_line
from ptprune.files import read_json
from ptprune.settings import is_number, is_whole

if TYPE_CHECKING:
    from ptprune.families import Family

ATTENTION = ("sdpa", "eager", "flash_attention_2")
"""Attention implementations that may be asked for. Any other name can be a kernel that is fetched and run."""
QUANTISED = ("bitsandbytes", "awq", "gptq", "compressed-tensors")
"""Methods of quantisation that run installed packages alone; others fetch kernels."""
CODE = ("auto_map", "custom_pipelines")
"""Entries that name code of the checkpoint's own."""
PRECISIONS = ("auto", "float16", "bfloat16", "float32", "float64")
VISION = ("clip_vision_model", "siglip_vision_model")
"""Vision towers of families that leave the choice to the configuration."""
TEXT = (
    *(
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt_oss",
        "granite",
        "helium",
        "internlm3",
    ),
    *("llama", "ministral", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("internlm3", "seed_oss", "smollm3", "starcoder2"),
)
"""Language models of families that leave the choice to the configuration: decoders with attention in every layer."""

CONFIG, GENERATION, PROCESSOR = "config.json", "generation_config.json", "processor_config.json"
PICTURES = "preprocessor_config.json"
TOKENIZER = "tokenizer_config.json"
SETTINGS = (PROCESSOR, PICTURES, "video_preprocessor_config.json", TOKENIZER, "special_tokens_map.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
VOCABULARY_BYTES = 1 << 28
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


class Unfit(ValueError):
    """A checkpoint that is not loaded. The message says what of it is wrong, and what would be right."""


def of_files(path: Path) -> Any:
    """``read_json``, with every error as an Unfit."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise Unfit(f"{path.name} cannot be read ({error}); give a complete checkpoint") from None


# --- configurations -------------------------------------------------------------------------------------------------


def model_class(family: type[Family]) -> Any:
    """The class of transformers that a family names: nothing in a checkpoint chooses it."""
    import transformers

    return getattr(transformers, family.model_class)


def clean_configuration(config: dict[str, Any], family: type[Family]) -> dict[str, Any]:
    """A checkpoint's configuration without names of code, which is never run.

    Raises:
        Unfit: where it is not one of the family, or asks for an implementation or a size that is not allowed.
    """
    stock = model_class(family).config_class
    stated = config.get("model_type")
    if stated != stock.model_type:
        raise Unfit(
            f"config.json: model_type {stated!r} is not that of {family.model_class}; give {stock.model_type!r}"
        )
    for name, kind in stock.sub_configs.items():
        part = config.get(name)
        if part is None:
            continue
        if not isinstance(part, dict):
            raise Unfit(f"config.json: {name} must be an object")
        _check_part(name, part.get("model_type"), kind)
    for where, key, value in _entries(config):
        _check_entry(where, key, value)
    return _without_code(config)


def _check_part(name: str, stated: Any, kind: Any) -> None:
    """Raises Unfit where a part of a configuration is of a type that does not belong there."""
    if not hasattr(kind, "model_type") or kind.__name__ == "AutoConfig":  # the configuration chooses its class
        allowed: Sequence[str] = VISION if name == "vision_config" else TEXT
        if stated is not None and stated not in allowed:
            raise Unfit(
                f"config.json: {name}.model_type {stated!r} is not known; it must be one of {', '.join(allowed)}"
            )
    elif stated is not None:  # the class is fixed; older files call it by the model's type
        from ptprune.families import FAMILIES

        stems = [model_class(family).config_class.model_type for family in FAMILIES.values()]
        if not (isinstance(stated, str) and stated.startswith((kind.model_type, *stems))):
            raise Unfit(f"config.json: {name}.model_type {stated!r} does not belong there; give {kind.model_type!r}")


def _entries(config: Any) -> Iterator[tuple[str, str, Any]]:
    """Every key of a configuration, also of objects inside it: (where, key, value)."""
    queue: list[tuple[str, Any]] = [("", config)]
    while queue:
        where, value = queue.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"{where}{key}", key, inner
                queue.append((f"{where}{key}.", inner))
        elif isinstance(value, list):
            queue += [(where, inner) for inner in value]


def _check_entry(where: str, key: str, value: Any) -> None:
    """Raises Unfit for an entry that reaches code, or a number that no model has."""
    if key.endswith(("attn_implementation", "attn_implementation_internal")):
        names = value.values() if isinstance(value, dict) else [value]
        if any(name is not None and name not in ATTENTION for name in names):
            raise Unfit(
                f"config.json: {where} {value!r} is not allowed; leave it out, or give {' or '.join(ATTENTION)}"
            )
    elif key == "quantization_config" and value is not None:
        method = value.get("quant_method") if isinstance(value, dict) else value
        if method not in QUANTISED:
            raise Unfit(
                f"config.json: quantisation by {method!r} is not known; it must be one of {', '.join(QUANTISED)}"
            )
    elif key in ("dtype", "torch_dtype") and value is not None and value not in PRECISIONS:
        raise Unfit(f"config.json: {where} {value!r} is unknown; it must be one of {', '.join(PRECISIONS)}")
    elif key == "transformers_weights" and value is not None:
        raise Unfit(f"config.json: {where} names a file of weights; leave it out, they are in {WEIGHTS}")
    elif key in ("num_hidden_layers", "depth", "num_layers") and value is not None:
        _require(is_whole(value) and 0 < value <= MAX_LAYERS, CONFIG, where, value, f"a whole number to {MAX_LAYERS}")
    elif is_number(value):
        # what a size may be is said by the weights; beyond this, Python and torch would count past what they can hold
        _require(math.isfinite(value) and abs(value) < 2**31, CONFIG, where, value, "finite and below 2**31")


def _require(holds: bool, file: str, where: str, value: Any, allowed: str) -> None:
    if not holds:
        told = repr(value)
        raise Unfit(f"{file}: {where} must be {allowed}, got {told if len(told) <= 64 else told[:61] + '...'}")


def _without_code(value: Any) -> Any:
    """The same without entries that name code of the checkpoint's own."""
    if isinstance(value, dict):
        return {key: _without_code(inner) for key, inner in value.items() if key not in CODE}
    return [_without_code(inner) for inner in value] if isinstance(value, list) else value


# --- how answers are generated --------------------------------------------------------------------------------------


def _id(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return len(ids) <= MAX_TOKENS and all(is_whole(one) and 0 <= one < 2**31 for one in ids)


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: is_number(value) and low <= value <= high


def _count(value: Any) -> bool:
    return is_whole(value) and 0 <= value <= MAX_TOKENS


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _one(value: Any) -> bool:
    return is_whole(value) and value == 1


GENERATING: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), _id),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"), _id),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size"), _count),
    **dict.fromkeys(("do_sample", USE_CACHE, "renormalize_logits", "remove_invalid_values", "early_stopping"), _flag),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), _between(0, 1)),
    **dict.fromkeys(("temperature", "repetition_penalty"), _between(1e-6, 1e6)),
    **dict.fromkeys(("length_penalty", "max_time"), _between(-1e6, 1e6)),
    "top_k": _count,
    "num_beams": _between(1, 64),
    "num_return_sequences": _one,
    "num_beam_groups": _one,
}
"""What a checkpoint may say about generation -> whether a value of it is one."""


def check_generation(directory: Path) -> None:
    """Raises Unfit where the file about generation asks for anything but ids, lengths and ordinary ways to sample."""
    if not (directory / GENERATION).is_file():
        return
    stated = of_files(directory / GENERATION)
    if not isinstance(stated, dict):
        raise Unfit(f"{GENERATION}: must be a JSON object")
    from transformers import GenerationConfig

    known = vars(GenerationConfig())
    for key, value in stated.items():
        if key.startswith("_") or key == "transformers_version" or value is None or key not in known:
            continue
        if key in GENERATING:
            _require(GENERATING[key](value), GENERATION, key, value, "of the usual kind and size")
        elif value is not False and value != known[key]:
            raise Unfit(f"{GENERATION}: {key} is not used here; leave it out")


# --- the processor --------------------------------------------------------------------------------------------------

COUNTS = ("max_patches", "min_patches", "pan_and_scan_max_num_crops")
SIDES = ("height", "width", "max_height", "max_width", "crop_size")
SMALL = ("patch_size", "merge_size", "temporal_patch_size", "scale_factor", "downsample_factor")
LENGTHS = ("image_seq_length", "image_seq_len", "num_image_tokens")
EDGES = ("shortest_edge", "longest_edge", "min_pixels", "max_pixels")
AREAS = ("Qwen2VL", "Qwen3VL", "Glm4v")  # image processors whose "edges" are numbers of pixels
LARGEST_AREA = 1 << 26
TOKEN = {"content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type", "id"}
"""What a token says of itself; the tokenizers' library prints whatever else it finds."""
GRIDS = 1024


def check_processor(directory: Path) -> None:
    """Raises Unfit where a processor's files are too large, name code or files elsewhere, or ask for sizes that no
    processor has."""
    for name in SETTINGS:
        if (directory / name).is_file():
            stated = of_files(directory / name)
            if not isinstance(stated, dict):
                raise Unfit(f"{name}: must be a JSON object")
            areas = any(
                isinstance(v, str) and v.startswith(AREAS) for _, k, v in _entries(stated) if k.endswith("_type")
            )
            for where, key, value in _entries(stated):
                _check_setting(name, where, key, value, areas)
    for name, limit in [(name, VOCABULARY_BYTES) for name in VOCABULARIES] + [
        (name, MAX_TEMPLATE) for name in TEMPLATES
    ]:
        if (directory / name).is_file() and (directory / name).stat().st_size > limit:
            raise Unfit(f"{name} is larger than {limit} bytes")


def _check_setting(file: str, where: str, key: str, value: Any, areas: bool) -> None:
    if key.endswith("_file") and isinstance(value, str) and Path(value).name != value:
        raise Unfit(f"{file}: {where} names a file elsewhere; leave it out")
    if isinstance(value, dict) and "content" in value and not TOKEN.issuperset(value):
        raise Unfit(f"{file}: {where} is no token, it says more than {', '.join(sorted(TOKEN))}")
    if key == "image_grid_pinpoints" and value is not None:
        right = isinstance(value, list) and 0 < len(value) <= GRIDS and all(map(_is_grid, value))
        _require(right, file, where, value, f"a list of at most {GRIDS} pairs of sides")
    if key == "size" and is_number(value):
        _require(is_whole(value) and 0 < value <= MAX_SIDE, file, where, value, f"a whole number of 1 to {MAX_SIDE}")
    for keys, most in (
        (COUNTS, MAX_TILES),
        (SIDES, MAX_SIDE),
        (SMALL, 512),
        (EDGES, LARGEST_AREA if areas else MAX_SIDE),
    ):
        if key in keys and is_number(value):
            _require(is_whole(value) and 0 < value <= most, file, where, value, f"a whole number of 1 to {most}")
    if key in LENGTHS and is_number(value):
        _require(is_whole(value) and 0 <= value <= 1 << 16, file, where, value, f"a whole number to {1 << 16}")
    if key == "model_max_length" and value is not None:  # where there is none, older files hold 10**30
        _require(is_number(value) or isinstance(value, int), file, where, value, "a number")
    if key in ("image_mean", "image_std") and value is not None:
        numbers = value if isinstance(value, list) else [value]
        right = len(numbers) in (1, 3) and all(is_number(one) and abs(one) < 1e6 for one in numbers)
        _require(right and (key == "image_mean" or all(numbers)), file, where, value, "three numbers")
    if is_number(value) and key != "model_max_length":
        _require(math.isfinite(value) and abs(value) < 2**40, file, where, value, "finite and below 2**40")


def _is_grid(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(is_whole(side) and 0 < side <= 2**15 for side in pair)


# --- weights --------------------------------------------------------------------------------------------------------


def count_weights(directory: Path, quantised: bool) -> int:
    """The most numbers that a checkpoint's weights can be; their values are not read.

    Args:
        quantised: whether several numbers may be packed into one.

    Raises:
        Unfit: where there are no weights in safetensors, their index names files elsewhere, or an adapter changes them.
    """
    from safetensors import safe_open

    if (directory / ADAPTER).is_file():
        raise Unfit(f"{ADAPTER}: an adapter is not laid over the weights; merge it into them")
    if (directory / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (directory / INDEX).is_file():
        index = of_files(directory / INDEX)
        placed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise Unfit(f"{INDEX}: weight_map must be an object of names of files")
        files = sorted(set(placed.values()))
        for name in files:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise Unfit(f"{INDEX}: weights must be safetensors files beside it, not {name!r}")
            if not (directory / name).is_file():
                raise Unfit(f"{name} is missing; give a complete checkpoint")
    else:
        raise Unfit(f"cannot be loaded (no {WEIGHTS}; only safetensors are read, which hold no code); give those")
    if quantised:
        return 2 * sum((directory / name).stat().st_size for name in files)  # four bits each
    total = 0
    for name in files:
        try:
            with safe_open(directory / name, framework="pt") as weights:
                total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        except Exception as error:  # of the library's own kind
            raise Unfit(f"cannot be loaded ({name}: {first_line(error)}); give a complete checkpoint") from None
    return total


@contextmanager
def at_most(weights: int) -> Iterator[None]:
    """Stop a model that is built inside the block, on the meta device and before it takes any memory, where it has more
    parameters than its files can fill.

    Twice as many are let through: tied weights count twice while a model is built. Buffers follow from sizes, too.

    Raises:
        Unfit: as soon as there are more.
    """
    import torch

    mine, counted = threading.get_ident(), {"parameters": 0, "buffers": 0}

    def count(what: str, value: Any) -> None:
        if value is None or not value.is_meta or threading.get_ident() != mine:  # what is read in later, counts no more
            return
        counted[what] += value.numel()
        if counted[what] > 2 * weights + (1 << 22):
            raise Unfit("config.json claims a larger model than the weights are; give the configuration they came with")

    hooks = torch.nn.modules.module
    handles = (
        hooks.register_module_parameter_registration_hook(lambda module, name, value: count("parameters", value)),
        hooks.register_module_buffer_registration_hook(lambda module, name, value: count("buffers", value)),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
