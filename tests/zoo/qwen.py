"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.zoo.specimen import Inputs, Parts, Specimen, finish, text_config, without_video
from tests.zoo.tokenizer import make_tokenizer

PATCH, MERGE = 8, 2
SIDE = PATCH * MERGE  # pixels of an LLM token
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
VISION = {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "num_heads": 2}


def _tokenizer():
    return make_tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )


def _tokens() -> dict[str, int]:
    tokenizer = _tokenizer()
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _never() -> list[int]:
    return list(_tokens().values())


def build_qwen2(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    config = Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, **VISION},
        text_config=text_config("qwen2_vl_text", layers, rope_parameters=dict(ROPE), **text),
        **_tokens(),
    )
    return finish(Qwen2VLForConditionalGeneration, config, dtype, attention, seed, _never())


def build_qwen2_5(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    """Two ViT layers with windows of 2x2 LLM tokens, one with full attention."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "window_size": 2 * SIDE,
            "fullatt_block_indexes": [2],
            **VISION,
        },
        text_config=text_config("qwen2_5_vl_text", layers, rope_parameters=dict(ROPE), **text),
        **_tokens(),
    )
    return finish(Qwen2_5_VLForConditionalGeneration, config, dtype, attention, seed, _never())


def build_qwen3(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    """Deepstack: two ViT layers feed the first two layers of the language model."""
    config = Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
            **VISION,
        },
        text_config=text_config("qwen3_vl_text", layers, head_dim=8, rope_parameters=dict(ROPE), **text),
        **_tokens(),
    )
    return finish(Qwen3VLForConditionalGeneration, config, dtype, attention, seed, _never())


def _images() -> Qwen2VLImageProcessorPil:
    size = {"shortest_edge": 4 * SIDE**2, "longest_edge": 40 * SIDE**2}
    return Qwen2VLImageProcessorPil(size=size, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2)


def qwen2_processor() -> ProcessorMixin:
    return without_video(Qwen2VLProcessor)(_images(), _tokenizer())


def qwen2_5_processor() -> ProcessorMixin:
    return without_video(Qwen2_5_VLProcessor)(_images(), _tokenizer())


def qwen3_processor() -> ProcessorMixin:
    return without_video(Qwen3VLProcessor)(_images(), _tokenizer())


def cut(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any]) -> list[Parts]:
    """Native resolution: the grid is that of LLM tokens."""
    merge = processor.image_processor.merge_size
    grids = [processor.image_processor([picture], **options)["image_grid_thw"][0] for picture in pictures]
    return [(1, (int(rows) // merge, int(columns) // merge), None) for _, rows, columns in grids]


def pool(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    """The processor lists patches in groups of those that the merger makes one token of.

    Qwen2.5-VL permutes whole groups for its windows and puts them back after the merger.
    """
    group = model.config.vision_config.spatial_merge_size**2
    tokens = values.view(-1, group).mean(-1)
    return list(tokens.split((inputs["image_grid_thw"].prod(-1) // group).tolist()))


QWEN2_VL = Specimen("qwen2-vl", build_qwen2, qwen2_processor, PLACEHOLDER, cut, pool, native=True)
QWEN2_5_VL = Specimen("qwen2.5-vl", build_qwen2_5, qwen2_5_processor, PLACEHOLDER, cut, pool, native=True)
QWEN3_VL = Specimen("qwen3-vl", build_qwen3, qwen3_processor, PLACEHOLDER, cut, pool, native=True)
