"""Qwen2.5-VL: like Qwen2-VL, but the encoder reorders the patches into attention windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from ptprune.families.base import Model
from ptprune.families.native import NativeFamily
from ptprune.families.qwen2_vl import Qwen2VL


class Qwen2_5VL(NativeFamily):
    name = "qwen2.5-vl"
    model_class = "Qwen2_5_VLForConditionalGeneration"
    example = "Qwen/Qwen2.5-VL-3B-Instruct"
    stages = Qwen2VL.stages

    @staticmethod
    def in_prompt_order(model: Model, call: Mapping[str, Any], values: Tensor) -> Tensor:
        visual = model.model.visual
        order, _ = get_vision_window_index(
            call["image_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        return values[torch.argsort(order).to(values.device)]
