"""Tiny random models of every family, with inputs made by the family's real processor."""

from __future__ import annotations

from tests.zoo.cohere import AYA_VISION, COHERE2_VISION
from tests.zoo.gemma import GEMMA3
from tests.zoo.glm import GLM4V
from tests.zoo.idefics import IDEFICS3, SMOLVLM
from tests.zoo.internvl import INTERNVL
from tests.zoo.llava import LLAVA_NEXT, LLAVA_ONEVISION
from tests.zoo.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from tests.zoo.specimen import ImageTruth, Inputs, Specimen

ZOO: dict[str, Specimen] = {
    specimen.name: specimen
    for specimen in (
        INTERNVL,
        LLAVA_NEXT,
        LLAVA_ONEVISION,
        IDEFICS3,
        SMOLVLM,
        GEMMA3,
        AYA_VISION,
        COHERE2_VISION,
        QWEN2_VL,
        QWEN2_5_VL,
        QWEN3_VL,
        GLM4V,
    )
}

__all__ = ["ZOO", "ImageTruth", "Inputs", "Specimen"]
