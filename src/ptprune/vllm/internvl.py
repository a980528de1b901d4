"""InternVL in OpenGVLab's own format (``InternVLChatModel``: InternVL2 and its successors), served by vLLM's
``internvl.py``."""

from __future__ import annotations

from torch import nn
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ptprune.vllm.model import PrunedModel
from ptprune.vllm.processor import PrunedProcessor


class PrunedInternVLChatModelProcessor(PrunedProcessor, InternVLMultiModalProcessor):
    def _single_token(self) -> list[int]:
        processor = self.info.get_hf_processor()
        return [processor.start_image_token_id, processor.ctx_image_token_id, processor.end_image_token_id]


@MULTIMODAL_REGISTRY.register_processor(
    PrunedInternVLChatModelProcessor,
    info=InternVLProcessingInfo,
    dummy_inputs=InternVLDummyInputsBuilder,
)
class PrunedInternVLChatModel(PrunedModel, InternVLChatModel):
    pixels = "pixel_values_flat"

    def _tower(self) -> nn.Module:
        return self.vision_model

    def _vision_attention(self) -> tuple[nn.Module, int]:
        attention = self.vision_model.encoder.layers[-1].attn
        return attention.attn, attention.tp_size
