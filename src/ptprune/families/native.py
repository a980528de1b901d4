"""Families that encode a picture whole, at its own resolution: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V.

Windows of the grid of visual tokens replace tiles, and the whole picture's mean feature replaces the thumbnail. The
patches of an LLM token stand together, in the order of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptprune.families.base import Model, WholeImages
from ptprune.families.encoded import EncodedImage, Encoding, EvidenceRequest, check_patches
from ptprune.layout import Place, Region


class NativeFamily(WholeImages):
    """``encoded`` returns whole images; their sizes are in ``image_grid_thw``."""

    grid_positions = True

    @staticmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        return model.model.visual.blocks[-1].attn

    @staticmethod
    def in_prompt_order(model: Model, call: Mapping[str, Any], values: Tensor) -> Tensor:
        """[tokens of all images, ...] in the encoder's order -> the same in the prompt's order."""
        return values

    @classmethod
    def encoded(
        cls,
        model: Model,
        call: Mapping[str, Any],
        output: Any,
        attention: Mapping[str, Tensor],
        wanted: EvidenceRequest,
        encoding: Encoding | None = None,
    ) -> list[EncodedImage]:
        merge = model.model.visual.spatial_merge_size
        grids = [(t * h // merge, w // merge) for t, h, w in call["image_grid_thw"].tolist()]
        sizes = [rows * columns for rows, columns in grids]
        check_patches(attention, sum(sizes) * merge**2)

        def pool(patches: Tensor) -> tuple[Tensor, ...]:
            tokens = patches.view(sum(sizes), -1, patches.shape[-1]).mean(dim=1)
            return cls.in_prompt_order(model, call, tokens).split(sizes)

        tokens = {name: tuple(of[:, 0] for of in pool(patches[:, None])) for name, patches in attention.items()}
        if wanted.names & {"region_features", "token_features"}:
            tokens["token_features"] = pool(output.last_hidden_state)
        previews: list[Any] = [None] * len(grids)
        if "pixels" in wanted.names:
            # one mean colour a token; pixel_values lists the patches in prompt order
            colours = call["pixel_values"].float().view(sum(sizes), -1, 3, call["pixel_values"].shape[1] // 3)
            parts = colours.mean(dim=(1, 3)).split(sizes)
            previews = [part.view(*grid, 3).permute(2, 0, 1) for part, grid in zip(parts, grids, strict=True)]
        return [
            _image(grid, wanted.window, {name: values[i] for name, values in tokens.items()}, previews[i])
            for i, grid in enumerate(grids)
        ]


def _image(
    grid: tuple[int, int], window: int | None, tokens: dict[str, Tensor], preview: Tensor | None
) -> EncodedImage:
    """Cut an image whose visual tokens form a grid of (rows, columns) into windows."""
    states = tokens["token_features"].float().view(*grid, -1) if "token_features" in tokens else None
    cuts = [_cuts(length, window) for length in grid]
    numbers = np.empty(grid, dtype=np.int64)
    regions: list[Region] = []
    places, features = [], []
    for row, (top, bottom) in enumerate(pairwise(cuts[0])):
        for column, (left, right) in enumerate(pairwise(cuts[1])):
            numbers[top:bottom, left:right] = len(regions)
            regions.append(Region((bottom - top, right - left)))
            places.append(Place(row, column, (left / grid[1], top / grid[0], right / grid[1], bottom / grid[0])))
            if states is not None:
                features.append(states[top:bottom, left:right].mean(dim=(0, 1)))
    means = None if states is None else torch.stack(features)
    whole = None if states is None else states.mean(dim=(0, 1))
    return EncodedImage(tuple(regions), numbers.ravel(), lambda: places, tokens, means, whole, preview)


def _cuts(length: int, window: int | None) -> Sequence[int]:
    """Edges of the windows along a side: the fewest of at most ``window`` tokens, as equal as possible."""
    number = 1 if window is None else -(-length // window)
    return [round(i * length / number) for i in range(number + 1)]
