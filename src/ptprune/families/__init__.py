"""The supported model families by name."""

from __future__ import annotations

from ptprune.errors import UnsupportedModel
from ptprune.families.aya_vision import AyaVision
from ptprune.families.base import Family, Model
from ptprune.families.cohere2_vision import Cohere2Vision
from ptprune.families.gemma3 import Gemma3
from ptprune.families.glm4v import Glm4v
from ptprune.families.idefics3 import Idefics3, SmolVLM
from ptprune.families.internvl import InternVL
from ptprune.families.llava_next import LlavaNext
from ptprune.families.llava_onevision import LlavaOnevision
from ptprune.families.qwen2_5_vl import Qwen2_5VL
from ptprune.families.qwen2_vl import Qwen2VL
from ptprune.families.qwen3_vl import Qwen3VL

FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (
        InternVL,
        LlavaNext,
        LlavaOnevision,
        Idefics3,
        SmolVLM,
        Gemma3,
        AyaVision,
        Cohere2Vision,
        Qwen2VL,
        Qwen2_5VL,
        Qwen3VL,
        Glm4v,
    )
}

# Models that are refused by name, and why.
UNSUPPORTED = {
    "MllamaForConditionalGeneration": "its language model reads the image through cross-attention, so there are no "
    "visual tokens in the prompt to drop",
    "PerceptionLMForConditionalGeneration": "its vision encoder is a timm model, whose attention is out of reach of "
    "transformers' attention interface: its scores would need the full attention map",
    "OptimizedModule": "the model is wrapped by torch.compile: attach to the model itself (`compiled._orig_mod`)",
    "DistributedDataParallel": "attach to the wrapped model (`model.module`)",
    "DataParallel": "attach to the wrapped model (`model.module`)",
}


def family_of(model: Model) -> type[Family]:
    """The family of a model.

    Raises:
        UnsupportedModel: if no family supports the model. The message lists the supported ones.
    """
    classes = [cls.__name__ for cls in type(model).__mro__]
    for family in FAMILIES.values():
        if family.model_class in classes:
            return family
    reason = next((f": {UNSUPPORTED[name]}" for name in classes if name in UNSUPPORTED), "")
    supported = ", ".join(family.model_class for family in FAMILIES.values())
    raise UnsupportedModel(f"{classes[0]} is not supported{reason}. Supported: {supported}")


__all__ = ["FAMILIES", "Family", "family_of"]
