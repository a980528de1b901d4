"""InternVL in the native "-hf" format, served by vLLM's ``interns1.py``, and in OpenGVLab's own (``InternVLChatModel``:
InternVL2 and its successors), served by vLLM's ``internvl.py``."""

from __future__ import annotations

from torch import nn
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ptprune.vllm.model import PrunedModel
from ptprune.vllm.processor import PrunedProcessor


class PrunedInternVLForConditionalGenerationProcessor(PrunedProcessor, InternS1MultiModalProcessor):
    visual_token, pixels = "image_token_id", "pixel_values"


@MULTIMODAL_REGISTRY.register_processor(
    PrunedInternVLForConditionalGenerationProcessor,
    info=InternS1ProcessingInfo,
    dummy_inputs=InternS1DummyInputsBuilder,
)
class PrunedInternVLForConditionalGeneration(PrunedModel, InternS1ForConditionalGeneration):
    pixels, tower = "pixel_values", "vision_tower"

    def _vision_attention(self) -> tuple[nn.Module, int]:
        return self.vision_tower.encoder.layer[-1].attention.attn, 1  # every rank has all heads


class PrunedInternVLChatModelProcessor(PrunedProcessor, InternVLMultiModalProcessor):
    visual_token, pixels = "ctx_image_token_id", "pixel_values_flat"


@MULTIMODAL_REGISTRY.register_processor(
    PrunedInternVLChatModelProcessor, info=InternVLProcessingInfo, dummy_inputs=InternVLDummyInputsBuilder
)
class PrunedInternVLChatModel(PrunedModel, InternVLChatModel):
    pixels, tower = "pixel_values_flat", "vision_model"

    def _vision_attention(self) -> tuple[nn.Module, int]:
        attention = self.vision_model.encoder.layers[-1].attn
        return attention.attn, attention.tp_size
