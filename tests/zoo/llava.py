"""LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from tests.zoo.specimen import Inputs, Parts, Specimen, finish, text_config, vision_config, without_video
from tests.zoo.tokenizer import make_tokenizer

TILE = 32
SIZE = {"height": TILE, "width": TILE}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
ONEVISION_PINPOINTS = [[32, 32], *PINPOINTS]  # released OneVision models have the single tile too
SHRINK = "anyres_max_2"  # a grid of 2x2 tiles or 1x3 is shrunk, one of 1x2 is not


def _next_tokenizer():
    return make_tokenizer(image_token="<image>")


def _onevision_tokenizer():
    return make_tokenizer(image_token="<image>", video_token="<video>")


def build_next(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    image = _next_tokenizer().image_token_id
    config = LlavaNextConfig(
        vision_config=vision_config("clip_vision_model", num_hidden_layers=3, projection_dim=32),
        text_config=text_config("llama", layers, **text),
        image_token_index=image,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return finish(LlavaNextForConditionalGeneration, config, dtype, attention, seed, [image])


def build_onevision(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    tokenizer = _onevision_tokenizer()
    config = LlavaOnevisionConfig(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config("qwen2", layers, **text),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=ONEVISION_PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=SHRINK,
    )
    never = [tokenizer.image_token_id, tokenizer.video_token_id]
    return finish(LlavaOnevisionForConditionalGeneration, config, dtype, attention, seed, never)


def next_processor() -> ProcessorMixin:
    images = LlavaNextImageProcessorPil(size={"shortest_edge": TILE}, crop_size=SIZE, image_grid_pinpoints=PINPOINTS)
    return LlavaNextProcessor(
        images,
        _next_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # [CLS], which "default" takes off again
    )


def onevision_processor() -> ProcessorMixin:
    images = LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=ONEVISION_PINPOINTS)
    return without_video(LlavaOnevisionProcessor)(
        images,
        _onevision_tokenizer(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=SHRINK,
    )


def cut(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any]) -> list[Parts]:
    """The thumbnail and the tiles of the best of the pinpoints; OneVision: one row each where there are several."""
    parts: list[Parts] = []
    several = len(pictures) > 1 and isinstance(processor.image_processor, LlavaOnevisionImageProcessorPil)
    for picture in pictures:
        neighbours = [picture, picture] if several else [picture]
        tiles = len(processor.image_processor([neighbours], return_tensors="np", **options)["pixel_values"][0])
        if tiles == 1:
            parts.append((1, (1, 1), None))
            continue
        pinpoints = processor.image_processor.image_grid_pinpoints
        height, width = select_best_resolution((picture.height, picture.width), pinpoints)
        parts.append((tiles, (height // TILE, width // TILE), 0))
    return parts


def _packed(model: PreTrainedModel, inputs: Inputs, values: Tensor, *options: Any, **named: Any) -> list[Tensor]:
    features = values[..., None].split([image.tiles for image in inputs.layout])
    newline = values.new_full((1,), torch.nan)
    packed, _ = model.model.pack_image_features(
        features, inputs["image_sizes"], *options, image_newline=newline, **named
    )
    return [tokens[:, 0] for tokens in packed]


def pool_next(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    return _packed(model, inputs, values, model.config.vision_feature_select_strategy)


def pool_onevision(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    return _packed(model, inputs, values, vision_aspect_ratio=model.config.vision_aspect_ratio)


LLAVA_NEXT = Specimen("llava-next", build_next, next_processor, "<image>", cut, pool_next)
LLAVA_ONEVISION = Specimen("llava-onevision", build_onevision, onevision_processor, "<image>", cut, pool_onevision)
