"""The subject of a speed benchmark: a model of random weights at a published model's proportions, or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ptprune.bench.picture import Drawn, Picture, cut, draw
from ptprune.checkpoints import Checkpoint
from ptprune.conventions import MASK, PIXELS
from ptprune.errors import SettingError
from ptprune.pruner import TokenPruner
from ptprune.shapes import SHAPES, ModelShape

IMAGE_TOKEN = 1  # of models with random weights
FIRST_WORD, WORDS = 10, 500  # their texts count through these tokens
SHADE = 1 / 32  # by which each copy of a picture is brighter than the one before, in the processor's units


@dataclass(frozen=True)
class Setup:
    """Plain values from which any process builds the same model and prompt."""

    shape: ModelShape | None  # proportions for random weights, cut to the depths that are run; None for a checkpoint
    directory: str | None  # of a checkpoint
    tiles: int  # of the picture, thumbnail not counted
    text_tokens: int  # of the question, which follows the picture; a checkpoint's chat template adds its own
    batch: int  # copies of the prompt, of pictures a shade apart, so that no tile is encoded once for all of them
    device: str
    dtype: str  # "float32", "bfloat16" or "float16"
    attention: str  # the models' ``attn_implementation``
    name: str = ""  # of the shape or checkpoint
    picture: Picture = Picture()
    tower_layers: int | None = None  # that run; None where the configuration does not say


@dataclass(frozen=True, eq=False)
class Subject:
    """A model on its device, and a prompt for it."""

    model: Any
    inputs: dict[str, Tensor]  # of ``model(**inputs)``; no attention mask, since nothing is padded
    shape: ModelShape | None  # for counting; None for a family that cannot be counted
    drawn: Drawn  # the picture

    @property
    def length(self) -> int:
        """Tokens of the prompt, text included."""
        return self.inputs["input_ids"].shape[1]


def choose_setup(
    wanted: Setup, shape: str | None, layers: int | None, vision_layers: int | None, pruners: Iterable[TokenPruner]
) -> Setup:
    """The setup of a ``shape`` or a checkpoint, checked before a model is built.

    Args:
        wanted: its ``name`` is that of the checkpoint; its dtype "auto" is float32 on a CPU, else bfloat16.

    Raises:
        SettingError: for whatever cannot be measured.
    """
    if shape is None:
        if (layers, vision_layers) != (None, None):
            raise SettingError("layers: a checkpoint runs whole; leave it out, or give a --shape")
        checkpoint = Checkpoint.find(wanted.name)
        config = checkpoint.config()
        setup = replace(
            wanted, name=checkpoint.name, directory=str(checkpoint.directory), tower_layers=tower_layers(config)
        )
        depth = int(config.get_text_config().num_hidden_layers)
    else:
        if shape not in SHAPES:
            raise SettingError(f"shape {shape}: unknown; give one of {', '.join(SHAPES)}")
        short = shortened(SHAPES[shape], layers, vision_layers)
        if short.family == "llava_next" and wanted.tiles == 1:
            raise SettingError(f"tiles 1: {shape} cuts every picture into two tiles at least; give 2 or more")
        setup = replace(wanted, name=shape, shape=short, tower_layers=short.vision.layers)
        depth = short.text.layers
    deepest = max(pruner.layer for pruner in pruners)
    if deepest >= depth:
        raise SettingError(f"layer {deepest}: too deep, {depth} decoder layers run; give 0 to {depth - 1}")
    automatic = "float32" if setup.device == "cpu" else "bfloat16"
    return replace(setup, dtype=automatic if setup.dtype == "auto" else setup.dtype)


def tower_layers(config: Any) -> int | None:
    """Layers of a checkpoint's vision tower; None where its configuration does not say."""
    return getattr(config.vision_config, "num_hidden_layers", None)


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
    """Draw the picture, build or load the model, and make the prompt.

    Raises:
        UserError: where the picture cannot be drawn.
    """
    if setup.shape is not None:
        drawn = draw(setup.picture, grid_of(setup.tiles), side_of(setup.shape))
        torch.manual_seed(0)
        model, shape = random_model(setup), setup.shape
        return Subject(model, _batch(setup, _random_prompt(setup, model, drawn)), shape, drawn)
    checkpoint = Checkpoint.find(setup.directory)
    drawn = draw(setup.picture, grid_of(setup.tiles), _side(checkpoint.config()))
    model = checkpoint.model(torch.device(setup.device), setup.dtype, setup.attention)
    try:
        known: ModelShape | None = ModelShape.from_config(model.config)
    except ValueError:
        known = None
    return Subject(model, _batch(setup, _processed_prompt(setup, model, drawn)), known, drawn)


def in_fewer_tiles(setup: Setup, subject: Subject, tiles: int) -> dict[str, Tensor]:
    """The subject's prompt with its picture cut into fewer tiles, as a processor that is told so does."""
    fewer = replace(setup, tiles=tiles)
    make = _processed_prompt if setup.shape is None else _random_prompt
    return _batch(fewer, make(fewer, subject.model, subject.drawn))


def _batch(setup: Setup, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a prompt, see ``Setup.batch``."""
    batch = {name: value.repeat(setup.batch, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    pixels = batch[PIXELS]
    shade = torch.arange(setup.batch, device=pixels.device).repeat_interleave(len(inputs[PIXELS])) * SHADE
    batch[PIXELS] = pixels + shade.to(pixels.dtype).view(-1, *[1] * (pixels.ndim - 1))
    return batch


def grid_of(tiles: int) -> tuple[int, int]:
    """(rows, columns) of so many tiles, as nearly square as can be, rather wide than tall."""
    rows = next(rows for rows in range(int(tiles**0.5), 0, -1) if tiles % rows == 0)
    return rows, tiles // rows


def side_of(shape: ModelShape) -> int:
    """Pixels a side of a tile."""
    return round((shape.vision.patch_values / 3) ** 0.5) * round(shape.vision.patches**0.5)


def random_model(setup: Setup) -> Any:
    """A model of the shape's proportions, vocabulary included."""
    from transformers import AutoModelForImageTextToText, InternVLConfig, LlavaNextConfig

    shape = setup.shape
    assert shape is not None
    text, vision = shape.text, shape.vision
    side = side_of(shape)
    patch = side // round(vision.patches**0.5)
    text_config = text.to_config() | {"max_position_embeddings": 32768}
    vision_config = vision.to_config()
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


def _random_prompt(setup: Setup, model: Any, drawn: Drawn) -> dict[str, Tensor]:
    """The picture, and behind it a text."""
    shape = setup.shape
    assert shape is not None
    grid, side = grid_of(setup.tiles), side_of(shape)
    llava = shape.family == "llava_next"
    thumbnail = "first" if llava else "last" if setup.tiles > 1 else None
    pixels = cut(drawn.image, grid, side, thumbnail)
    placeholders = len(pixels) * shape.tile_tokens
    more = {}
    if llava:
        rows, columns = grid
        placeholders += rows * round(shape.vision.patches**0.5)  # a newline ends each row of the grid
        size = [rows * side, columns * side]
        if size not in model.config.image_grid_pinpoints:
            model.config.image_grid_pinpoints.append(size)
        more["image_sizes"] = torch.tensor([size])
        pixels = pixels[None]
    vocabulary = shape.text.vocabulary
    words = FIRST_WORD + torch.arange(setup.text_tokens) % min(WORDS, vocabulary - FIRST_WORD)
    ids = torch.cat([torch.full((placeholders,), IMAGE_TOKEN), words])[None]
    inputs = {"input_ids": ids, PIXELS: pixels.to(getattr(torch, setup.dtype)), **more}
    return {name: value.to(setup.device) for name, value in inputs.items()}


def _side(config: Any) -> int:
    """Pixels a side of a checkpoint's tile, or of what stands for one where a model takes pictures of any size."""
    side: Any = getattr(config.vision_config, "image_size", None) or 448
    return side if isinstance(side, int) else side[0]


def _processed_prompt(setup: Setup, model: Any, drawn: Drawn) -> dict[str, Tensor]:
    """What a checkpoint's own processor makes of the picture and a text."""
    from ptprune.asking.chat import make_prompt
    from ptprune.checkpoints.processor import tile_options

    checkpoint = Checkpoint.find(setup.directory)
    processor = checkpoint.processor()
    (rows, columns), side = grid_of(setup.tiles), _side(model.config)
    try:
        options = tile_options(checkpoint.family.name, processor, setup.tiles)
    except SettingError:  # the picture's size decides
        options = {}
    image = drawn.image.resize((columns * side, rows * side))
    inputs = make_prompt(model, processor, [image], " ".join(["word"] * setup.text_tokens), options)
    inputs.pop(MASK, None)  # nothing is padded
    dtype = getattr(torch, setup.dtype)
    return {
        name: value.to(setup.device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
