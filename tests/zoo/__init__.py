"""Tiny random models of every family, with inputs made by the family's real processor."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedModel

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

SLIDING = ["gemma3", "aya-vision", "cohere2-vision"]
"""Families some of whose layers see only a window; ``build(sliding_window=...)`` sets it."""


@cache
def model_of(name: str, attention: str = "sdpa", sliding_window: int | None = None) -> PreTrainedModel:
    """A family's model, built once: tests that change a model build their own."""
    window = {} if sliding_window is None else {"sliding_window": sliding_window}
    return ZOO[name].build(attention=attention, **window)


@cache
def inputs_of(name: str, prompt: str, side: str = "left") -> Inputs:
    """A family's inputs for one of its prompts, made once: tests that change them copy them."""
    return ZOO[name].inputs(ZOO[name].prompts[prompt], side)


__all__ = ["SLIDING", "ZOO", "ImageTruth", "Inputs", "Specimen", "inputs_of", "model_of"]
