"""A tiny random InternVL and prompts for it, shared by the tests."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

IMAGE, PAD, START, END, VOCAB = 60, 0, 61, 62, 64
TOKENS_PER_TILE = 4  # 32 pixels, patch 8: 16 patches, 2x2 pixel shuffle


def tiny_internvl(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: object
) -> InternVLForConditionalGeneration:
    torch.manual_seed(seed)
    config = InternVLConfig(
        vision_config={
            "model_type": "internvl_vision",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": [32, 32],
            "patch_size": [8, 8],
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "pad_token_id": PAD,
            "bos_token_id": None,
            "eos_token_id": None,
            **text,
        },
        image_token_id=IMAGE,
        image_seq_length=TOKENS_PER_TILE,
    )
    config._attn_implementation = attention
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():  # sharpen: the default initialisation leaves attention uniform and every score a tie
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 if "norm" not in name else parameter)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE]  # stock takes a generated one for a placeholder
    return model.to(dtype)


def prompt(*parts: int | list[int]) -> list[int]:
    """Token ids: an int is an image of that many encoder rows (tiles and thumbnail), a list is text."""
    ids: list[int] = []
    for part in parts:
        ids += part if isinstance(part, list) else [START, *[IMAGE] * (part * TOKENS_PER_TILE), END]
    return ids


def batch(*rows: list[int], side: str = "left", seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Padded inputs with random pixels."""
    length = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill = [PAD] * (length - len(row))
        ids.append(fill + row if side == "left" else row + fill)
        ones, zeros = [1] * len(row), [0] * len(fill)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    tiles = sum(row.count(IMAGE) for row in rows) // TOKENS_PER_TILE
    if tiles:
        generator = torch.Generator().manual_seed(seed)
        inputs["pixel_values"] = torch.randn(tiles, 3, 32, 32, generator=generator).to(dtype)
    return inputs
