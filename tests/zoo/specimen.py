"""What the zoo knows about one family: a tiny random model, its real processor, prompts, and the truth about both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from tests.zoo.pictures import MARKER, Row, prompts
from tests.zoo.tokenizer import PAD

Parts = tuple[int, tuple[int, int], "int | None"]
"""Of one picture: number of encoder rows, (rows, columns), which of its encoder rows is the thumbnail."""


@dataclass(frozen=True)
class ImageTruth:
    """One picture of a batch, as the family's processor cut it.

    Attributes:
        sample: the row of the batch.
        tiles: how many rows of the vision encoder it takes, thumbnail included; 1 at native resolution.
        grid: (rows, columns) of tiles; at native resolution (rows, columns) of LLM tokens.
        thumbnail: which of its own encoder rows shows the whole picture beside the tiles; None where nothing does.
    """

    sample: int
    tiles: int
    grid: tuple[int, int]
    thumbnail: int | None


class Inputs(dict[str, Tensor]):
    """What a model takes, and in ``layout`` every picture in prompt order over the batch."""

    layout: list[ImageTruth]


@dataclass(frozen=True)
class Specimen:
    """One family.

    Attributes:
        build: ``build(dtype, attention, layers, seed, **text_config)``, an eval model with sharpened random weights.
        make_processor: the family's processor; ``processor`` caches it.
        placeholder: what the text of a prompt holds for a picture.
        cut: ``cut(processor, pictures of one row, image options)``, how the processor cuts each of these pictures.
        pool: ``pool(model, inputs, values)``: values of ViT patches pushed through the model's own packing. ``values``
            is [encoder rows, patches] without [CLS], at native resolution [all patches] in the order of the processor;
            returned is the mean per LLM token of every picture, NaN where the token is structural.
        image_options: what the processor is called with, for it to cut pictures at all.
        native: whether the vision encoder takes pictures at their own resolution, without tiles.
    """

    name: str
    build: Callable[..., PreTrainedModel]
    make_processor: Callable[[], ProcessorMixin]
    placeholder: str
    cut: Callable[[ProcessorMixin, list[Image.Image], dict[str, Any]], list[Parts]]
    pool: Callable[[PreTrainedModel, Inputs, Tensor], list[Tensor]]
    image_options: dict[str, Any] = field(default_factory=dict)
    native: bool = False
    prompts: dict[str, list[Row]] = field(default_factory=prompts)

    @cached_property
    def processor(self) -> ProcessorMixin:
        return self.make_processor()

    def inputs(
        self,
        rows: Sequence[Row],
        side: str = "left",
        dtype: torch.dtype = torch.float32,
        flat: bool = False,
        **image_options: Any,
    ) -> Inputs:
        """Everything that ``model(**inputs)`` and ``model.generate(**inputs)`` take, padded on ``side``.

        Pictures go to the processor as a list per row, as with chat templates, or ``flat`` as one list: LLaVA-OneVision
        then cuts each of several pictures of a row into tiles.
        """
        nested = [pictures for _, pictures in rows]
        pictures = [picture for row in nested for picture in row]
        batch = self.processor(
            images=(pictures if flat else nested) if pictures else None,
            text=[text.replace(MARKER, self.placeholder) for text, _ in rows],
            text_kwargs={"padding": True, "padding_side": side},
            images_kwargs={**self.image_options, **image_options},
            return_tensors="pt",
        )
        inputs = Inputs({key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()})
        inputs.layout = self.layout(rows, flat, **image_options)
        return inputs

    def layout(self, rows: Sequence[Row], flat: bool = False, **image_options: Any) -> list[ImageTruth]:
        """Every picture in prompt order over the batch, each row (``flat``: each picture) processed on its own."""
        options = {**self.image_options, **image_options}
        return [
            ImageTruth(sample, *parts)
            for sample, (_, pictures) in enumerate(rows)
            for group in ([[picture] for picture in pictures] if flat else [pictures] if pictures else [])
            for parts in self.cut(self.processor, group, options)
        ]

    def shape(self, model: PreTrainedModel, inputs: Inputs) -> tuple[int, ...]:
        """The shape of the values that ``pool`` takes."""
        if self.native:
            return (inputs["pixel_values"].shape[0],)
        vision = model.config.vision_config
        size, patch = (side if isinstance(side, int) else side[0] for side in (vision.image_size, vision.patch_size))
        return sum(image.tiles for image in inputs.layout), (size // patch) ** 2

    def visual(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """[batch, length], true at the placeholders of LLM tokens of pictures."""
        return inputs["input_ids"] == model.config.image_token_id


def by_picture(tokens: Tensor, inputs: Inputs) -> list[Tensor]:
    """[encoder rows, tokens of each] as one flat tensor per picture."""
    return [rows.flatten() for rows in tokens.split([image.tiles for image in inputs.layout])]


def finish(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: str,
    seed: int,
    never: Iterable[int],
    scale: float = 0.3,
) -> PreTrainedModel:
    """A model with sharpened random weights that never generates the tokens ``never``.

    The default initialisation leaves attention uniform and every score a tie.
    """
    torch.manual_seed(seed)
    config._attn_implementation = attention
    model = model_class(config).eval()
    normalising = {
        id(parameter)
        for module in model.modules()
        if "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in normalising:
                parameter.copy_(torch.randn_like(parameter) * scale)
    model.generation_config.pad_token_id = PAD
    model.generation_config.bos_token_id = None
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = sorted(never)  # stock takes a generated placeholder for a picture
    return model.to(dtype)


def text_config(model_type: str, layers: int, **more: Any) -> dict[str, Any]:
    """What the language models of all families have in common."""
    return {
        "model_type": model_type,
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        **more,
    }


def vision_config(model_type: str, **more: Any) -> dict[str, Any]:
    """What the tiled vision encoders have in common: tiles of 32 pixels, 4x4 patches."""
    return {
        "model_type": model_type,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
        **more,
    }


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor without its video part, which is what needs torchvision.

    A processor's parts are the parameters of its constructor: this one has no ``video_processor``.
    """

    class ImageOnly(processor_class):  # type: ignore[misc, valid-type]
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **options: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **options)

    return ImageOnly
