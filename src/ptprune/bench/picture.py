"""The pictures of a speed benchmark: noise, or a drawn scene of which one knows how many tiles hold something."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ptprune.errors import UserError
from ptprune.tiny.scenes import generate_scene
from ptprune.tiny.world import MissingExtra

NOISE, SCENE = "noise", "scene"
KINDS = (NOISE, SCENE)
Grid = tuple[int, int]
"""(rows, columns) of tiles."""


@dataclass(frozen=True)
class Picture:
    """What is drawn, whatever its size in pixels."""

    kind: str = NOISE  # one of ``KINDS``
    fill: tuple[float, float] = (0.5, 0.5)  # of a scene: least and greatest share of the tiles that hold something
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture whose tiles are squares of as many pixels as the model's."""

    image: Image.Image
    filled: int | None = None  # of a scene: the tiles that hold something
    background: str | None = None  # of a scene


def draw(picture: Picture, grid: Grid, side: int) -> Drawn:
    """Draw a picture of ``grid`` tiles of ``side`` x ``side`` pixels; a scene is drawn small, and each tile enlarged.

    Raises:
        UserError: where the libraries that draw scenes are not installed.
    """
    rows, columns = grid
    if picture.kind == NOISE:
        shape = (rows * side, columns * side, 3)
        noise = np.random.default_rng(picture.seed).integers(0, 256, shape, dtype=np.uint8)
        return Drawn(Image.fromarray(noise))
    try:
        scene = generate_scene("dev", picture.seed, grid=(columns, rows), fill=picture.fill)
    except MissingExtra as error:
        raise UserError(str(error)) from None
    filled = {(thing.row, thing.column) for thing in scene.objects}
    large = scene.image.resize((columns * side, rows * side), Image.Resampling.BILINEAR)
    return Drawn(large, len(filled), scene.background)


def cut(image: Image.Image, grid: Grid, side: int, thumbnail: str | None) -> Tensor:
    """Cut a picture into tiles, row by row: FloatTensor [tiles, 3, side, side], its values around 0.

    Args:
        image: of any size; it is stretched to the grid.
        thumbnail: "first" or "last" among the tiles; None: none.
    """
    rows, columns = grid
    whole = _pixels(image, columns * side, rows * side).view(3, rows, side, columns, side)
    tiles = whole.permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, side, side)
    if thumbnail is None:
        return tiles
    small = _pixels(image, side, side)[None]
    return torch.cat([small, tiles] if thumbnail == "first" else [tiles, small])


def _pixels(image: Image.Image, width: int, height: int) -> Tensor:
    """FloatTensor [3, height, width] with mean and deviation of common photographs taken off."""
    resized = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)
    return ((pixels - 0.45) / 0.225).permute(2, 0, 1).contiguous()
