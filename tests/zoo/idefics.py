"""Idefics3 and SmolVLM."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.zoo.specimen import (
    Inputs,
    Parts,
    Specimen,
    by_picture,
    finish,
    text_config,
    vision_config,
    without_video,
)
from tests.zoo.tokenizer import make_tokenizer

TOKENS_PER_TILE = 4  # 32 pixels, patch 8: 16 patches, 2x2 pixel shuffle
SIZES: dict[str, Any] = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
SPECIALS = (
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)


def _tokenizer():
    return make_tokenizer(SPECIALS, image_token="<image>", video_token="<video>")


def build(
    model_class: type[PreTrainedModel],
    config_class: type[PreTrainedConfig],
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    layers: int = 4,
    seed: int = 0,
    **text: Any,
) -> PreTrainedModel:
    tokenizer = _tokenizer()
    config = config_class(
        vision_config=vision_config(f"{config_class.model_type}_vision"),
        text_config=text_config("llama", layers, **text),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return finish(model_class, config, dtype, attention, seed, [tokenizer.image_token_id, tokenizer.video_token_id])


def idefics3_processor() -> ProcessorMixin:
    return Idefics3Processor(Idefics3ImageProcessorPil(**SIZES), _tokenizer(), image_seq_len=TOKENS_PER_TILE)


def smolvlm_processor() -> ProcessorMixin:
    if not processing_smolvlm.num2words:  # an optional package that writes out the number of frames of a video
        processing_smolvlm.num2words = str
    images = SmolVLMImageProcessorPil(**SIZES)
    return without_video(SmolVLMProcessor)(images, _tokenizer(), image_seq_len=TOKENS_PER_TILE)


def cut(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any]) -> list[Parts]:
    """Tiles row by row, the whole picture last; nothing but the whole picture where it is not split."""
    parts: list[Parts] = []
    for picture in pictures:
        alone = processor.image_processor([[picture]], return_tensors="np", return_row_col_info=True, **options)
        tiles, grid = alone["pixel_values"].shape[1], (alone["rows"][0][0], alone["cols"][0][0])
        parts.append((tiles, grid, tiles - 1) if tiles > 1 else (1, (1, 1), None))
    return parts


def pool(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    connector = model.model.connector
    return by_picture(connector.pixel_shuffle(values[..., None], connector.scale_factor).mean(-1), inputs)


IDEFICS3 = Specimen(
    "idefics3",
    partial(build, Idefics3ForConditionalGeneration, Idefics3Config),
    idefics3_processor,
    "<image>",
    cut,
    pool,
)
SMOLVLM = Specimen(
    "smolvlm",
    partial(build, SmolVLMForConditionalGeneration, SmolVLMConfig),
    smolvlm_processor,
    "<image>",
    cut,
    pool,
)
