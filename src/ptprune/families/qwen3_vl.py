"""Qwen3-VL: the picture whole, 2x2 patches make an LLM token, no [CLS]; deepstack adds features after first layers."""

from __future__ import annotations

from ptprune.families.native import NativeFamily
from ptprune.families.qwen2_vl import Qwen2VL


class Qwen3VL(NativeFamily):
    name = "qwen3-vl"
    model_class = "Qwen3VLForConditionalGeneration"
    example = "Qwen/Qwen3-VL-4B-Instruct"
    stages = Qwen2VL.stages
    deepstack = "_deepstack_process"
