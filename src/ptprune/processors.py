"""Loads the processor of any supported checkpoint, with or without torchvision."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GotOcr2ImageProcessorPil
from transformers.image_utils import SizeDict
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils import is_torchvision_available

#: A class of transformers' processors, and one of them. Their attributes have no useful static types.
ProcessorClass: TypeAlias = Any
Processor: TypeAlias = Any

VIDEO = "video_processor"
# Files that can name the processor's class, in the order in which AutoProcessor asks them.
NAMING = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "config.json")


def load_processor(directory: str | Path) -> Processor:
    """The processor of a checkpoint.

    With torchvision it is what ``AutoProcessor`` gives. Without, or where the checkpoint was saved without a video
    part, it is the same class for pictures and text only; without torchvision on Pillow.

    Raises:
        OSError, ValueError: where files are missing, cannot be read, or name no processor.
    """
    processor_class = find_class(Path(directory))
    if is_torchvision_available() and (image_only(processor_class) is processor_class or _has_video(Path(directory))):
        return AutoProcessor.from_pretrained(directory, local_files_only=True)
    if not is_torchvision_available() and processor_class.__name__ == "Cohere2VisionProcessor":
        return _load_cohere2_vision(processor_class, directory)
    return image_only(processor_class).from_pretrained(directory, local_files_only=True)


def find_class(directory: Path) -> ProcessorClass:
    """The class of a checkpoint's processor: the one that a file names, else the one of the model's type.

    Raises:
        OSError, ValueError: where files cannot be read, or there is no such class.
    """
    for name in NAMING:
        if (directory / name).is_file():
            wanted = json.loads((directory / name).read_text(encoding="utf-8")).get("processor_class")
            found = processor_class_from_name(wanted) if wanted else None
            if found is not None:
                return found
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"no processor is known for models of type {config.model_type!r}")
    return PROCESSOR_MAPPING[type(config)]


def _has_video(directory: Path) -> bool:
    """Whether a checkpoint says how videos are processed; old ones say it together with images."""
    named = directory / "processor_config.json"
    if named.is_file() and VIDEO in json.loads(named.read_text(encoding="utf-8")):
        return True
    return any((directory / name).is_file() for name in ("video_preprocessor_config.json", "preprocessor_config.json"))


@cache
def image_only(processor_class: ProcessorClass) -> ProcessorClass:
    """A processor class without its video part, which is what needs torchvision; the class itself if it has none.

    Same inputs and same outputs for pictures and text, and the same name, under which it saves itself. All parameters
    of the constructor stay; give None for ``video_processor`` or leave it out.

    Raises:
        TypeError: for a class whose video part is not the last of its parts.
    """
    parts = processor_class.get_attributes()
    if VIDEO not in parts:
        return processor_class
    if parts[-1] != VIDEO:  # the base class takes its parts by place
        raise TypeError(f"{processor_class.__name__}: the video processor must be the last of {', '.join(parts)}")

    class ImageOnly(processor_class):
        video_processor = NoVideo()

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEO]

        @classmethod
        def from_args_and_dict(cls, args: Sequence[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Processor:
            rest = {name: value for name, value in processor_dict.items() if name != VIDEO}
            with _without_num2words(processor_class):
                return super().from_args_and_dict([*args, None], rest, **kwargs)

    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(ImageOnly, attribute, getattr(processor_class, attribute))
    return ImageOnly


class NoVideo:
    """Stands where a video processor would: processors look up its settings even where there is no video."""

    num_frames = fps = None

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError("videos need torchvision: this processor was loaded without its video part")


@contextmanager
def _without_num2words(processor_class: ProcessorClass) -> Iterator[None]:
    """SmolVLM's constructor asks for this package, which only writes out how many frames a video has."""
    module: Any = sys.modules[processor_class.__module__]
    if getattr(module, "num2words", True) is not None:
        yield
        return
    module.num2words = NoVideo()
    try:
        yield
    finally:
        module.num2words = None


# Cohere2 Vision's image processor is the only one without a twin on Pillow.


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


def _load_cohere2_vision(processor_class: ProcessorClass, directory: str | Path) -> Processor:
    """The processor put together by hand: AutoImageProcessor finds no class that works without torchvision."""
    images = Cohere2VisionImageProcessorPil.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    settings, _ = processor_class.get_processor_dict(directory, local_files_only=True)
    return processor_class.from_args_and_dict([images, tokenizer], settings)
