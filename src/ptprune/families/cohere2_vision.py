"""Cohere2 Vision: row-major tiles, then the thumbnail; SigLIP without [CLS].

An LLM token is a row-major block of patches (pixel shuffle). A start token begins an image, a line break ends a tile.
"""

from __future__ import annotations

from ptprune.families.base import INSTRUCTION, Encoder, Model
from ptprune.families.grouping import started_by_mark
from ptprune.families.tiled import STAGES_WITHOUT_CLS, TiledFamily


class Cohere2Vision(TiledFamily):
    name = "cohere2-vision"
    model_class = "Cohere2VisionForConditionalGeneration"
    example = "CohereLabs/command-a-vision-07-2025"
    stages = {**STAGES_WITHOUT_CLS, "instruction": f"{INSTRUCTION}; most layers have a sliding window"}
    grouped = staticmethod(started_by_mark)

    @staticmethod
    def encoder(model: Model) -> Encoder:
        tower = model.model.vision_tower
        return Encoder(tower, model.model.multi_modal_projector, tower.encoder.layers, model.config.downsample_factor)
