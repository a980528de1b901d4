"""Prompts for the zoo's InternVL written by hand, token by token: for tests in which numbers and places matter."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.internvl import INTERNVL, TILE, TOKENS_PER_TILE
from tests.zoo.tokenizer import PAD, VOCAB

__all__ = ["END", "IMAGE", "PAD", "START", "TOKENS_PER_TILE", "VOCAB", "batch", "prompt", "tiny_internvl"]

tiny_internvl = INTERNVL.build

_TOKENIZER = INTERNVL.processor.tokenizer
START, END, IMAGE = (getattr(_TOKENIZER, f"{name}_image_token_id") for name in ("start", "end", "context"))


def prompt(*parts: int | list[int]) -> list[int]:
    """Token ids: an int is an image of that many encoder rows (tiles and thumbnail), a list is text, ids 3 to 46."""
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
        inputs["pixel_values"] = torch.randn(tiles, 3, TILE, TILE, generator=generator).to(dtype)
    return inputs
