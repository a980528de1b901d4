"""Aya Vision and Cohere2 Vision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.utils import is_torchvision_available

from tests.zoo.specimen import Inputs, Parts, Specimen, by_picture, finish, text_config, vision_config
from tests.zoo.tokenizer import make_tokenizer

TILE, MOST = 32, 6  # patch 8: 16 patches, 2x2 pixel shuffle: 4 tokens per tile
SIZE = {"height": TILE, "width": TILE}
WINDOW = 512
BREAK = "<|IMG_LINE_BREAK|>"


def _types(layers: int) -> list[str]:
    return ["full_attention" if index % 4 == 3 else "sliding_attention" for index in range(layers)]


def _text(layers: int, text: dict[str, Any]) -> dict[str, Any]:
    """Sliding attention in every layer but the last of every four; logits that are not nearly equal."""
    more = {"layer_types": _types(layers), "sliding_window": WINDOW, "logit_scale": 1.0, **text}
    return text_config("cohere2", layers, **more)


# Aya Vision


def _aya_tokenizer():
    specials = ("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", BREAK, "TILE", "TILE_GLOBAL")
    return make_tokenizer((*specials, *(f"TILE_{index}" for index in range(1, 13))), image_token="<image>")


def build_aya(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    patch = _aya_tokenizer().convert_tokens_to_ids("<|IMG_PATCH|>")
    config = AyaVisionConfig(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=_text(layers, text),
        image_token_index=patch,
        downsample_factor=2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return finish(AyaVisionForConditionalGeneration, config, dtype, attention, seed, [patch])


def aya_processor() -> ProcessorMixin:
    images = GotOcr2ImageProcessorPil(size=SIZE, min_patches=1, max_patches=MOST, crop_to_patches=True)
    return AyaVisionProcessor(images, _aya_tokenizer(), patch_size=8, img_size=TILE, downsample_factor=2)


def cut_aya(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any]) -> list[Parts]:
    return _cut(processor, pictures, options, get_optimal_tiled_canvas)


# Cohere2 Vision


def least_upscaling(size: tuple[int, int], tile: tuple[int, int], fewest: int, most: int) -> tuple[int, int]:
    """The (columns, rows) that Cohere2 Vision chooses: what upscales least, else what downscales least."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    grids = sorted(grids, key=lambda grid: grid[0] * grid[1])
    scales = np.array([min(columns * tile[0] / size[1], rows * tile[0] / size[0]) for columns, rows in grids])
    if (scales < 1).all():
        return grids[int(scales.argmax())]
    return grids[int(np.where(scales < 1, np.inf, scales).argmin())]


class ByHand(GotOcr2ImageProcessorPil):
    """Stands in for ``Cohere2VisionImageProcessor``, which has no PIL twin, where torchvision is missing.

    Its documented format: the tiles of the chosen grid row by row, then the thumbnail if there is more than one.
    ``patch_size`` is, as there, the side of a tile in LLM tokens.
    """

    crop_to_patches = True
    patch_size = 16

    def crop_image_to_patches(
        self,
        image: np.ndarray,
        min_patches: int,
        max_patches: int,
        use_thumbnail: bool = True,
        patch_size: Any = None,
        resample: Any = None,
    ) -> list[np.ndarray]:
        side = patch_size.height
        columns, rows = least_upscaling(image.shape[-2:], (side, side), min_patches, max_patches)
        canvas = self.resize(image, SizeDict(height=rows * side, width=columns * side), resample=resample)
        tiles = [
            canvas[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            for row in range(rows)
            for column in range(columns)
        ]
        return tiles if len(tiles) == 1 else [*tiles, self.resize(image, patch_size, resample=resample)]


def _cohere_tokenizer():
    return make_tokenizer(
        image_token="<|IMG_PATCH|>",
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        img_line_break_token=BREAK,
    )


def build_cohere(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", layers: int = 4, seed: int = 0, **text: Any
) -> PreTrainedModel:
    patch = _cohere_tokenizer().image_token_id
    config = Cohere2VisionConfig(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=_text(layers, text),
        image_token_id=patch,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return finish(Cohere2VisionForConditionalGeneration, config, dtype, attention, seed, [patch])


def cohere_processor() -> ProcessorMixin:
    if is_torchvision_available():
        from transformers import Cohere2VisionImageProcessor as ImageProcessor
    else:
        ImageProcessor = ByHand
    return Cohere2VisionProcessor(ImageProcessor(size=SIZE, patch_size=2, max_patches=MOST), _cohere_tokenizer())


def cut_cohere(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any]) -> list[Parts]:
    return _cut(processor, pictures, options, least_upscaling)


# Both


def _cut(processor: ProcessorMixin, pictures: list[Image.Image], options: dict[str, Any], choose: Any) -> list[Parts]:
    """Tiles row by row, the thumbnail last; one row without thumbnail where there is one tile."""
    parts: list[Parts] = []
    for picture in pictures:
        alone = processor.image_processor([picture], return_tensors="pt", **options)
        tiles = int(alone["num_patches"][0])
        if tiles == 1:
            parts.append((1, (1, 1), None))
            continue
        most = options.get("max_patches", processor.image_processor.max_patches)
        columns, rows = choose((picture.height, picture.width), (TILE, TILE), 1, most)
        parts.append((tiles, (rows, columns), tiles - 1))
    return parts


def pool(model: PreTrainedModel, inputs: Inputs, values: Tensor) -> list[Tensor]:
    return by_picture(model.model.multi_modal_projector.pixel_shuffle(values[..., None]).flatten(1, 2).mean(-1), inputs)


AYA_VISION = Specimen("aya-vision", build_aya, aya_processor, "<image>", cut_aya, pool)
COHERE2_VISION = Specimen("cohere2-vision", build_cohere, cohere_processor, "<|IMG_PATCH|>", cut_cohere, pool)
