"""InternVL in the native "-hf" format, served by vLLM's ``interns1.py``."""

from __future__ import annotations

from torch import nn
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ptprune.vllm.model import PrunedModel
from ptprune.vllm.processor import PrunedProcessor


class PrunedInternVLForConditionalGenerationProcessor(PrunedProcessor, InternS1MultiModalProcessor):
    def _single_token(self) -> list[int]:
        processor = self.info.get_hf_processor()
        return [processor.start_image_token_id, processor.image_token_id, processor.end_image_token_id]


@MULTIMODAL_REGISTRY.register_processor(
    PrunedInternVLForConditionalGenerationProcessor,
    info=InternS1ProcessingInfo,
    dummy_inputs=InternS1DummyInputsBuilder,
)
class PrunedInternVLForConditionalGeneration(PrunedModel, InternS1ForConditionalGeneration):
    pixels = "pixel_values"

    def _tower(self) -> nn.Module:
        return self.vision_tower

    def _vision_attention(self) -> tuple[nn.Module, int]:
        return self.vision_tower.encoder.layer[-1].attention.attn, 1  # every rank has all heads
