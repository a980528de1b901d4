"""Gemma3 with pan and scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tests.zoo.specimen import Inputs, Parts, Specimen, by_picture, finish, text_config, vision_config
from tests.zoo.tokenizer import make_tokenizer

TOKENS_PER_TILE = 4  # 32 pixels, patch 8: 16 patches, 2x2 average pooling
WINDOW = 512
OPTIONS: dict[str, Any] = {  # by call: the processor's own defaults override those of its image processor
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 16,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def _tokenizer():
    return make_tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")


def build(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    """Sliding attention in every layer but the third of every four."""
    tokenizer = _tokenizer()
    types = ["full_attention" if index % 4 == 2 else "sliding_attention" for index in range(layers)]
    text = {"layer_types": types, "sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8, **text}
    config = Gemma3Config(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config("gemma3_text", layers, **text),
        mm_tokens_per_image=TOKENS_PER_TILE,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    never = [tokenizer.image_token_id, tokenizer.boi_token_id]
    return finish(Gemma3ForConditionalGeneration, config, dtype, attention, seed, never)


def processor() -> ProcessorMixin:
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    return Gemma3Processor(images, _tokenizer(), image_seq_length=TOKENS_PER_TILE)


def cut(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any]) -> list[Parts]:
    """The whole picture first, then the crops, side by side or one below the other."""
    parts: list[Parts] = []
    for picture in pictures:
        alone = processor.image_processor([picture], return_tensors="np", **options)
        tiles = len(alone["pixel_values"])
        assert tiles == 1 + alone["num_crops"][0]
        if tiles == 1:
            parts.append((1, (1, 1), None))
            continue
        scan = {key: value for key, value in options.items() if key.startswith("pan_and_scan_")}
        pixels = np.asarray(picture).transpose(2, 0, 1)
        crop = processor.image_processor.pan_and_scan(pixels, **scan)[0]
        beside = crop.shape[-2] == picture.height
        parts.append((tiles, (1, tiles - 1) if beside else (tiles - 1, 1), 0))
    return parts


def pool(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    projector = model.model.multi_modal_projector
    maps = values.unflatten(1, (1, projector.patches_per_image, projector.patches_per_image))
    return by_picture(projector.avg_pool(maps).flatten(1), inputs)


GEMMA3 = Specimen("gemma3", build, processor, "<start_of_image>", cut, pool, image_options=OPTIONS)
