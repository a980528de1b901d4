"""Gemma3 with pan and scan: the thumbnail ("original image") FIRST, then its crops; SigLIP without [CLS].

An LLM token is the mean over a block of patches. Crops are strips, side by side or one below the other. Neither the
processor nor the model's inputs show which pictures are crops of which, so this file infers it from text and pixels:
the same text stands between all crops of an image, and the joined crops look like the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.families.base import INSTRUCTION, Encoder, Model
from ptprune.families.encoded import EncodedImage, EncodedTile, join_tiles
from ptprune.families.tiled import STAGES_WITHOUT_CLS, TiledFamily
from ptprune.layout import THUMBNAIL, Place, even_place

LIKENESS = 0.85  # least correlation of an original with its joined crops; other pictures are far below


class Gemma3(TiledFamily):
    name = "gemma3"
    model_class = "Gemma3ForConditionalGeneration"
    example = "google/gemma-3-4b-it"
    stages = {
        **STAGES_WITHOUT_CLS,
        "tiles": "thumbnail first, then the crops if the processor makes them (pan and scan)",
        "instruction": f"{INSTRUCTION}; five of six layers have a sliding window, the sixth sees all: `layer=6`",
    }

    @staticmethod
    def encoder(model: Model) -> Encoder:
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        return Encoder(tower, projector, tower.encoder.layers, projector.kernel_size)

    @classmethod
    def rotary(cls, model: Model, layer: int, hidden_states: Tensor, position_ids: Tensor) -> Any:
        decoder = cls.decoder(model)
        return decoder.rotary_emb(hidden_states, position_ids, decoder.config.layer_types[layer])

    @classmethod
    def images(cls, gaps: Sequence[Sequence[int]], encoded: Sequence[EncodedTile]) -> list[EncodedImage]:
        images, first = [], 0
        while first < len(encoded):
            crops, shape = _crops(gaps[first:], encoded[first:])
            images.append(join_tiles(encoded[first : first + 1 + crops], "first", partial(_places, *shape)))
            first += 1 + crops
        return images


def _crops(gaps: Sequence[Sequence[int]], tiles: Sequence[EncodedTile]) -> tuple[int, tuple[int, int]]:
    """How many pictures after the first one are its crops, and their (rows, columns)."""
    most = 0
    while most + 1 < len(tiles) and (most < 1 or gaps[most + 1] == gaps[2]):
        most += 1
    if most < 2:  # pan and scan makes two crops or more
        return 0, (1, 1)
    original, *crops = [tile.preview.float().cpu() for tile in tiles[: most + 1]]
    candidates = [(n, shape) for n in range(2, most + 1) for shape in ((1, n), (n, 1))]
    likeness, (number, shape) = max((_likeness(original, crops[:n], shape), (n, shape)) for n, shape in candidates)
    return (number, shape) if likeness > LIKENESS else (0, (1, 1))


def _likeness(original: Tensor, crops: list[Tensor], shape: tuple[int, int]) -> float:
    """Correlation of a picture with the strips, joined and shrunk to its size; all [3, p, p]."""
    joined = torch.cat(crops, dim=2 if shape[0] == 1 else 1)
    small = F.adaptive_avg_pool2d(joined, (original.shape[1], original.shape[2]))
    return float(torch.corrcoef(torch.stack([original.flatten(), small.flatten()]))[0, 1].nan_to_num())


def _places(rows: int, columns: int) -> list[Place]:
    return [THUMBNAIL, *(even_place(*divmod(crop, columns), rows, columns) for crop in range(rows * columns))]
