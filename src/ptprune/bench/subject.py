"""The subject of a speed benchmark: a model of random weights at a published model's proportions, or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ptprune.checkpoints import Checkpoint
from ptprune.conventions import MASK
from ptprune.cost import Prompt
from ptprune.errors import SettingError
from ptprune.pruner import TokenPruner
from ptprune.shapes import SHAPES, ModelShape

IMAGE_TOKEN = 1  # of models with random weights
FIRST_WORD, WORDS = 10, 500  # their texts count through these tokens


@dataclass(frozen=True)
class Setup:
    """Plain values from which any process builds the same model and prompt.

    Attributes:
        shape: proportions for random weights, cut to the depths that are run; None for a checkpoint.
        directory: of a checkpoint.
        tiles: of the picture, thumbnail not counted.
        text_tokens: of the question, which follows the picture; a checkpoint's chat template adds its own.
        batch: copies of the prompt.
        dtype: "float32", "bfloat16" or "float16".
        attention: the models' ``attn_implementation``.
        name: of the shape or checkpoint.
    """

    shape: ModelShape | None
    directory: str | None
    tiles: int
    text_tokens: int
    batch: int
    device: str
    dtype: str
    attention: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model on its device, and a prompt for it.

    Attributes:
        inputs: of ``model(**inputs)``; no attention mask, since nothing is padded.
        shape: for counting; None for a family that cannot be counted.
    """

    model: Any
    inputs: dict[str, Tensor]
    shape: ModelShape | None

    @property
    def length(self) -> int:
        """Tokens of the prompt, text included."""
        return self.inputs["input_ids"].shape[1]


def choose_setup(
    shape: str | None,
    model: str | None,
    layers: int | None,
    vision_layers: int | None,
    pruners: Iterable[TokenPruner],
    *,
    tiles: int,
    device: str,
    dtype: str,
    **prompt: Any,
) -> Setup:
    """The setup of a ``shape`` or a checkpoint (``model``), checked before a model is built.

    Args:
        dtype: "auto" is float32 on a CPU, else bfloat16.
        prompt: the other fields of the setup.

    Raises:
        SettingError: for whatever cannot be measured.
    """
    cut = directory = None
    if shape is None:
        if (layers, vision_layers) != (None, None):
            raise SettingError("layers: a checkpoint runs whole; leave it out, or give a --shape")
        checkpoint = Checkpoint.find(model)
        name, directory = checkpoint.name, str(checkpoint.directory)
        depth = int(checkpoint.config().get_text_config().num_hidden_layers)
    else:
        if shape not in SHAPES:
            raise SettingError(f"shape {shape}: unknown; give one of {', '.join(SHAPES)}")
        name, cut = shape, shortened(SHAPES[shape], layers, vision_layers)
        if cut.family == "llava_next" and tiles == 1:
            raise SettingError(f"tiles 1: {shape} cuts every picture into two tiles at least; give 2 or more")
        depth = cut.text.layers
    deepest = max(pruner.layer for pruner in pruners)
    if deepest >= depth:
        raise SettingError(f"layer {deepest}: too deep, {depth} decoder layers run; give 0 to {depth - 1}")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return Setup(cut, directory, tiles=tiles, device=device, dtype=dtype, name=name, **prompt)


def shortened(shape: ModelShape, layers: int | None, vision_layers: int | None) -> ModelShape:
    """The shape with fewer layers; where only the decoder's are told, the vision tower is cut in the same proportion.

    So the first token's time has the same parts as at full depth, as far as that can be.

    Raises:
        SettingError: where the shape has fewer layers than asked for, naming the option.
    """
    text, vision = shape.text, shape.vision
    layers = text.layers if layers is None else layers
    if vision_layers is None:
        # two at least: LLaVA's features are those of the last layer but one
        vision_layers = min(vision.layers, max(2, round(vision.layers * layers / text.layers)))
    for option, value, whole in (("layers", layers, text.layers), ("vision_layers", vision_layers, vision.layers)):
        if not 1 <= value <= whole:
            raise SettingError(f"{option} {value}: {shape.name} has {whole}; give 1 to {whole}")
    return replace(shape, text=replace(text, layers=layers), vision=replace(vision, layers=vision_layers))


def prepare(setup: Setup) -> Subject:
    """Build or load the model, and make the prompt."""
    if setup.shape is None:
        return _checkpoint(setup)
    torch.manual_seed(0)
    model = random_model(setup)
    inputs = random_prompt(setup, model)
    return Subject(model, repeated(inputs, setup.batch), setup.shape)


def grid_of(tiles: int) -> tuple[int, int]:
    """(rows, columns) of so many tiles, as nearly square as can be, rather wide than tall."""
    rows = next(rows for rows in range(int(tiles**0.5), 0, -1) if tiles % rows == 0)
    return rows, tiles // rows


def random_model(setup: Setup) -> Any:
    """A model of the shape's proportions, vocabulary included."""
    from transformers import AutoModelForImageTextToText, InternVLConfig, LlavaNextConfig

    shape = setup.shape
    assert shape is not None
    text, vision = shape.text, shape.vision
    patch = round((vision.patch_values / 3) ** 0.5)
    side = round(vision.patches**0.5) * patch
    text_config = {
        "model_type": text.decoder,
        "vocab_size": text.vocabulary,
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "intermediate_size": text.ffn,
        "max_position_embeddings": 32768,
    }
    vision_config = {
        "hidden_size": vision.width,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": max(1, vision.width // 64),
        "intermediate_size": vision.ffn,
    }
    config: Any
    if shape.family == "llava_next":
        rows, columns = grid_of(setup.tiles)
        config = LlavaNextConfig(
            vision_config={"model_type": "clip_vision_model", **vision_config, "image_size": side, "patch_size": patch},
            text_config=text_config,
            image_token_index=IMAGE_TOKEN,
            image_grid_pinpoints=[[rows * side, columns * side]],
        )
    else:
        sizes = {"image_size": [side, side], "patch_size": [patch, patch]}
        config = InternVLConfig(
            vision_config={"model_type": "internvl_vision", **vision_config, **sizes},
            text_config=text_config,
            image_token_id=IMAGE_TOKEN,
            image_seq_length=shape.tile_tokens,
            downsample_ratio=(shape.tile_tokens / vision.patches) ** 0.5,
        )
    with torch.device(setup.device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, setup.dtype), attn_implementation=setup.attention
        )
    return model.eval()


def random_prompt(setup: Setup, model: Any) -> dict[str, Tensor]:
    """A picture of noise, and behind it a text."""
    shape = setup.shape
    assert shape is not None
    encoded = Prompt(setup.tiles, setup.text_tokens).encoded
    placeholders = encoded * shape.tile_tokens
    vision = model.config.vision_config
    more = {}
    if shape.family == "llava_next":
        rows, columns = grid_of(setup.tiles)
        placeholders += rows * round(shape.vision.patches**0.5)  # a newline ends each row of the grid
        more["image_sizes"] = torch.tensor([[rows * vision.image_size, columns * vision.image_size]])
        pixels = torch.randn(1, encoded, 3, vision.image_size, vision.image_size)
    else:
        pixels = torch.randn(encoded, 3, *vision.image_size)
    vocabulary = shape.text.vocabulary
    words = FIRST_WORD + torch.arange(setup.text_tokens) % min(WORDS, vocabulary - FIRST_WORD)
    ids = torch.cat([torch.full((placeholders,), IMAGE_TOKEN), words])[None]
    inputs = {"input_ids": ids, "pixel_values": pixels.to(getattr(torch, setup.dtype)), **more}
    return {name: value.to(setup.device) for name, value in inputs.items()}


def repeated(inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
    """The same prompt several times over."""
    return {name: value.repeat(batch, *[1] * (value.ndim - 1)) for name, value in inputs.items()}


def _checkpoint(setup: Setup) -> Subject:
    """A checkpoint with its own processor, asked about a picture of noise."""
    import numpy as np
    from PIL import Image

    from ptprune.asking.chat import make_prompt
    from ptprune.checkpoints.processor import tile_options

    checkpoint = Checkpoint.find(setup.directory)
    processor = checkpoint.processor()
    model: Any = checkpoint.model(torch.device(setup.device), setup.dtype, setup.attention)
    rows, columns = grid_of(setup.tiles)
    side = tile_side(model.config)
    try:
        options = tile_options(checkpoint.family.name, processor, setup.tiles)
    except SettingError:  # the picture's size decides
        options = {}
    noise = np.random.default_rng(0).integers(0, 256, (rows * side, columns * side, 3), dtype=np.uint8)
    inputs = make_prompt(model, processor, [Image.fromarray(noise)], " ".join(["word"] * setup.text_tokens), options)
    inputs.pop(MASK, None)  # nothing is padded
    dtype = getattr(torch, setup.dtype)
    inputs = {
        name: value.to(setup.device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    try:
        shape = ModelShape.from_config(model.config)
    except ValueError:
        shape = None
    return Subject(model, repeated(inputs, setup.batch), shape)


def tile_side(config: Any) -> int:
    """Pixels a side of a tile, or of what stands for one where a model reads pictures at their own size."""
    side = getattr(config.vision_config, "image_size", None)
    if isinstance(side, int):
        return side
    return side[0] if side else 448
