"""Idefics3 and SmolVLM: row-major tiles, then the thumbnail ("global image"); SigLIP without [CLS].

An LLM token is a row-major block of patches (pixel shuffle). Text before each tile names its place, "<row_1_col_2>", or
the thumbnail, "<global-img>". A newline ends a row of tiles. SmolVLM's video frames are images of one tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ptprune.families.base import Encoder, Model
from ptprune.families.encoded import EncodedImage, EncodedTile, join_tiles
from ptprune.families.grouping import ended_by_mark
from ptprune.families.tiled import FRAMES, STAGES_WITHOUT_CLS, TiledFamily
from ptprune.layout import THUMBNAIL, Place, even_place


class Idefics3(TiledFamily):
    name = "idefics3"
    model_class = "Idefics3ForConditionalGeneration"
    example = "HuggingFaceM4/Idefics3-8B-Llama3"
    stages = STAGES_WITHOUT_CLS
    grouped = staticmethod(ended_by_mark)

    @staticmethod
    def decoder(model: Model) -> Model:
        return model.model.text_model

    @staticmethod
    def encoder(model: Model) -> Encoder:
        tower = model.model.vision_model
        return Encoder(tower, model.model.connector, tower.encoder.layers, model.config.scale_factor)

    @staticmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        return model.model.vision_model.encoder.layers[-1].self_attn

    @staticmethod
    def pixels(call: Mapping[str, Any]) -> Tensor:
        pixels = call["pixel_values"].flatten(0, 1)
        real = pixels.flatten(1).any(dim=1)  # the model does not encode the all-zero tiles that pad shorter lists
        real[0] |= ~real.any()  # but SmolVLM encodes one if all are zero
        return pixels[real]

    @staticmethod
    def joined(gaps: Sequence[Sequence[int]], tiles: Sequence[EncodedTile]) -> EncodedImage:
        return join_tiles(tiles, "last", partial(_places, gaps))


class SmolVLM(Idefics3):
    name = "smolvlm"
    model_class = "SmolVLMForConditionalGeneration"
    example = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    stages = {**STAGES_WITHOUT_CLS, "videos": FRAMES}


def _places(gaps: Sequence[Sequence[int]]) -> list[Place]:
    """A separator and its name precede each tile; a newline precedes both at the start of a row."""
    separator = gaps[-1][-2]
    columns = next((i for i, gap in enumerate(gaps) if i and gap[0] != separator), len(gaps) - 1)
    tiles = len(gaps) - 1
    rows = tiles // columns
    return [*(even_place(*divmod(tile, columns), rows, columns) for tile in range(tiles)), THUMBNAIL]
