"""Qwen3-VL: like Qwen2-VL, but deepstack adds visual features after the language model's first layers."""

from __future__ import annotations

from ptprune.families.native import NativeFamily
from ptprune.families.qwen2_vl import Qwen2VL


class Qwen3VL(NativeFamily):
    name = "qwen3-vl"
    model_class = "Qwen3VLForConditionalGeneration"
    example = "Qwen/Qwen3-VL-4B-Instruct"
    stages = Qwen2VL.stages
    deepstack = "_deepstack_process"
