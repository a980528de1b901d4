"""Cohere2 Vision's image processor on Pillow: the only one that has no such twin in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import GotOcr2ImageProcessorPil
from transformers.image_utils import SizeDict


class Cohere2VisionImageProcessorPil(GotOcr2ImageProcessorPil):
    """``Cohere2VisionImageProcessor`` on Pillow: GOT-OCR's tiles, on another choice of grid.

    Attributes:
        patch_size: side of a tile in LLM tokens, which the processor asks for.
    """

    size = {"height": 512, "width": 512}
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
        """Tiles row by row, then the thumbnail where there is more than one tile.

        Args:
            image: [channels, height, width].
        """
        height, width = patch_size.height, patch_size.width
        columns, rows = tile_grid(image.shape[-2:], (height, width), max_patches)
        canvas = self.resize(image, SizeDict(height=rows * height, width=columns * width), resample=resample)
        places = [(row * height, column * width) for row in range(rows) for column in range(columns)]
        tiles = [canvas[:, top : top + height, left : left + width] for top, left in places]
        if use_thumbnail and len(tiles) > 1:
            tiles.append(self.resize(image, patch_size, resample=resample))
        return tiles

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Tiles of a picture of this size, thumbnail included."""
        options = {"max_patches": self.max_patches, "crop_to_patches": self.crop_to_patches, **(images_kwargs or {})}
        if not options["crop_to_patches"]:
            return 1
        side = self.size
        columns, rows = tile_grid((height, width), (side["height"], side["width"]), options["max_patches"])
        return columns * rows + (columns * rows > 1)


def tile_grid(size: Sequence[int], tile: tuple[int, int], max_tiles: int) -> tuple[int, int]:
    """(columns, rows) that Cohere2 Vision cuts a picture into: the grid that enlarges it least, else shrinks it least.

    Args:
        size: (height, width) of the picture in pixels.
        tile: (height, width) of a tile. As there, only the height counts.
    """
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if columns * rows <= max_tiles]
    grids.sort(key=lambda grid: grid[0] * grid[1])  # stable: of equals the first wins
    scales = [min(columns * tile[0] / size[1], rows * tile[0] / size[0]) for columns, rows in grids]
    enlarging = [scale for scale in scales if scale >= 1]
    return grids[scales.index(min(enlarging) if enlarging else max(scales))]
