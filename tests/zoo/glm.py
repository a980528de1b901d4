"""GLM-4.1V."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from tests.zoo.qwen import MERGE, PATCH, SIDE, cut
from tests.zoo.specimen import Inputs, Specimen, finish, text_config, without_video
from tests.zoo.tokenizer import make_tokenizer

ATTRIBUTES = {"image_token": "<|image|>", "video_token": "<|video|>"}
BOUNDS = {
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}


def _tokenizer():
    return make_tokenizer(BOUNDS.values(), **ATTRIBUTES)


def build(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    """Hidden size 64: half of a head's dimensions rotate, and three axes must share them."""
    tokenizer = _tokenizer()
    bounds = {name: tokenizer.convert_tokens_to_ids(token) for name, token in BOUNDS.items()}
    tokens = {"image_token_id": tokenizer.image_token_id, "video_token_id": tokenizer.video_token_id, **bounds}
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    }
    config = Glm4vConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_heads": 2,
            "image_size": 64,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        text_config=text_config("glm4v_text", layers, **{"hidden_size": 64, "rope_parameters": rope, **text}),
        **tokens,
    )
    return finish(Glm4vForConditionalGeneration, config, dtype, attention, seed, tokens.values(), scale=0.2)


def processor() -> ProcessorMixin:
    size = {"shortest_edge": 2 * 4 * SIDE**2, "longest_edge": 2 * 40 * SIDE**2}  # of both frames that a picture is
    images = Glm4vImageProcessorPil(size=size, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2)
    return without_video(Glm4vProcessor)(images, _tokenizer())


def pool(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    merge = model.config.vision_config.spatial_merge_size
    tokens = values.view(-1, merge, merge).mean((-2, -1))  # as before the convolution of Glm4vVisionModel
    return list(tokens.split((inputs["image_grid_thw"].prod(-1) // merge**2).tolist()))


GLM4V = Specimen("glm4v", build, processor, "<|begin_of_image|><|image|><|end_of_image|>", cut, pool, native=True)
