"""InternVL."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

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

TILE, TOKENS_PER_TILE, MOST = 32, 4, 6  # patch 8: 16 patches, 2x2 pixel shuffle


def _tokenizer():
    return make_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )


def build(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    image = _tokenizer().context_image_token_id
    config = InternVLConfig(
        vision_config=vision_config(
            "internvl_vision", image_size=[TILE, TILE], patch_size=[8, 8], layer_scale_init_value=1.0
        ),
        text_config=text_config("qwen2", layers, **text),
        image_token_id=image,
        image_seq_length=TOKENS_PER_TILE,
    )
    return finish(InternVLForConditionalGeneration, config, dtype, attention, seed, [image])


def processor() -> ProcessorMixin:
    images = GotOcr2ImageProcessorPil(size={"height": TILE, "width": TILE}, min_patches=1, max_patches=MOST)
    return without_video(InternVLProcessor)(images, _tokenizer(), image_seq_length=TOKENS_PER_TILE)


def cut(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any]) -> list[Parts]:
    """Tiles row by row, the thumbnail last; one row without thumbnail where there is one tile."""
    parts: list[Parts] = []
    for picture in pictures:
        alone = processor.image_processor([picture], return_tensors="np", **{"crop_to_patches": True, **options})
        tiles = int(alone["num_patches"][0])
        if tiles == 1:
            parts.append((1, (1, 1), None))
            continue
        columns, rows = get_optimal_tiled_canvas(
            (picture.height, picture.width),
            (TILE, TILE),
            processor.image_processor.min_patches,
            options.get("max_patches", processor.image_processor.max_patches),
        )
        parts.append((tiles, (rows, columns), tiles - 1))
    return parts


def pool(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    side = TILE // 8
    features = values.view(-1, side, side, 1)  # as in InternVLModel.get_image_features
    shuffled = model.model.pixel_shuffle(features, scale_factor=model.config.downsample_ratio)
    return by_picture(shuffled.flatten(1, 2).mean(-1), inputs)


INTERNVL = Specimen("internvl", build, processor, "<IMG_CONTEXT>", cut, pool)
