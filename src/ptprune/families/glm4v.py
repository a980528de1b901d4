"""GLM-4V (4.1V): pictures are encoded whole without [CLS]; a convolution merges 2x2 patches into an LLM token."""

from __future__ import annotations

from ptprune.families.native import NativeFamily
from ptprune.families.qwen2_vl import Qwen2VL


class Glm4v(NativeFamily):
    name = "glm4v"
    model_class = "Glm4vForConditionalGeneration"
    example = "zai-org/GLM-4.1V-9B-Thinking"
    repeats_pictures_wrong = True
    stages = {**Qwen2VL.stages, "region": "cosine of each window's mean token feature with the whole picture's"}
