"""Prompts to verify a model with, and what they become as an answer grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ptprune.asking.chat import ask_about, chat_inputs
from ptprune.conventions import MASK
from ptprune.families.base import Model

QUESTIONS = ("What is in this picture?", "Which colours does the picture show, and where?")
FOLLOW_UP = " And what else is there?"
IDS = "input_ids"
PER_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # 0 for text


def drawn_pictures() -> list[Image.Image]:
    """Two pictures that become a few tiles each: shapes on a gradient, no two regions alike."""
    pictures = []
    for size, seed in (((600, 300), 3), ((300, 600), 7)):
        picture = Image.radial_gradient("L").resize(size).convert("RGB")
        draw = ImageDraw.Draw(picture)
        for number in range(12):
            x, y = (number * 97 * seed) % (size[0] - 60), (number * 61 * seed) % (size[1] - 60)
            colour = tuple((number * step * seed) % 256 for step in (37, 59, 83))
            (draw.ellipse if number % 2 else draw.rectangle)((x, y, x + 50, y + 30 + number), fill=colour)
        pictures.append(picture)
    return pictures


def inputs_of(
    model: Model, processor: Any, pictures: Sequence[Image.Image], image_options: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """Inputs of a batch of chat turns, each about one of the pictures, padded on the left."""
    conversations = [ask_about(1, QUESTIONS[number % len(QUESTIONS)]) for number in range(len(pictures))]
    tokenizer = processor.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        inputs = chat_inputs(processor, conversations, [[picture] for picture in pictures], image_options)
    finally:
        tokenizer.padding_side = side
    dtype = next(model.parameters()).dtype
    return {
        name: value.to(model.device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    }


def real(inputs: dict[str, Tensor]) -> Tensor:
    """BoolTensor [batch, length], False on padding."""
    mask = inputs.get(MASK)
    return torch.ones_like(inputs[IDS], dtype=torch.bool) if mask is None else mask.bool()


def grown(inputs: dict[str, Tensor], sequences: Tensor) -> dict[str, Tensor]:
    """The inputs with more text behind the prompt; sequences: LongTensor [batch, length], prompt and what follows."""
    more = sequences.shape[1] - inputs[IDS].shape[1]
    longer = {**inputs, IDS: sequences, MASK: torch.nn.functional.pad(real(inputs).long(), (0, more), value=1)}
    for name in PER_TOKEN_TYPES:
        if name in inputs:
            longer[name] = torch.nn.functional.pad(inputs[name], (0, more))
    return longer
