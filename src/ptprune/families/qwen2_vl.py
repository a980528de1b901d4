"""Qwen2-VL: pictures are encoded whole without [CLS]; 2x2 patches make an LLM token."""

from __future__ import annotations

from ptprune.families.base import INSTRUCTION, NOT_PRUNED
from ptprune.families.native import NativeFamily


class Qwen2VL(NativeFamily):
    name = "qwen2-vl"
    model_class = "Qwen2VLForConditionalGeneration"
    example = "Qwen/Qwen2-VL-2B-Instruct"
    stages = {
        "tiles": "none: windows of the token grid (option `window`) replace them",
        "region": "cosine of each window's mean patch feature with the whole picture's",
        "token": "attention received from the picture's patches at the last layer, mean over a token's patches",
        "instruction": INSTRUCTION,
        "videos": NOT_PRUNED,
    }
