"""Loads the processor of any supported checkpoint, with or without torchvision, and limits its tiles."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.utils import is_torchvision_available

from ptprune.bounds import MAX_TILES
from ptprune.checkpoints.cohere2_vision import Cohere2VisionImageProcessorPil
from ptprune.checkpoints.image_only import VIDEO, Processor, ProcessorClass, image_only
from ptprune.checkpoints.inspection import (
    CONFIG,
    PICTURES,
    PROCESSOR,
    TOKENIZER,
    check_processor,
    model_class,
    of_files,
)
from ptprune.errors import Refused, SettingError
from ptprune.families import FAMILIES
from ptprune.templates import RENDERER

# Files that can name the processor's class, in the order in which AutoProcessor asks them.
NAMING = (PROCESSOR, PICTURES, TOKENIZER, CONFIG)
OWN: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # of every loader of transformers

# Processor -> its image processor on Pillow, where AutoImageProcessor finds none without torchvision: Cohere2 Vision
# has none in transformers; those of Idefics3 and SmolVLM are there, but are taken for torchvision's before 5.18.
ON_PILLOW: dict[str, ProcessorClass] = {
    "Cohere2VisionProcessor": Cohere2VisionImageProcessorPil,
    "Idefics3Processor": Idefics3ImageProcessorPil,
    "SmolVLMProcessor": SmolVLMImageProcessorPil,
}

# An option that only image processors of that kind have -> why the number of tiles is no choice there.
REASONS = {
    "image_grid_pinpoints": "its tile grids are listed in the checkpoint's configuration",
    "do_image_splitting": "its tiles follow from the picture's size",
    "merge_size": "it has no tiles, it reads a picture at its own size",
}


def load_processor(directory: str | Path) -> Processor:
    """The processor of a checkpoint.

    With torchvision it is what ``AutoProcessor`` gives. Without, or where the checkpoint was saved without a video
    part, it is the same class for pictures and text only; without torchvision on Pillow. The classes are transformers'
    own, and of a supported family; code of the checkpoint is never run.

    Raises:
        OSError, ValueError: where files are missing, cannot be read, name no processor, or ask for sizes that none has.
    """
    directory = Path(directory)
    check_processor(directory)
    RENDERER.start()  # meanwhile
    processor_class = find_class(directory)
    if is_torchvision_available() and (image_only(processor_class) is processor_class or _has_video(directory)):
        return processor_class.from_pretrained(directory, **OWN)
    if not is_torchvision_available() and (images := ON_PILLOW.get(processor_class.__name__)) is not None:
        parts = [
            images.from_pretrained(directory, local_files_only=True),
            AutoTokenizer.from_pretrained(directory, **OWN),
        ]
        settings, _ = image_only(processor_class).get_processor_dict(directory, local_files_only=True)
        return image_only(processor_class).from_args_and_dict(parts, settings)
    return image_only(processor_class).from_pretrained(directory, **OWN)


@cache
def _known() -> dict[str, str]:
    """Model types of the supported families -> names of their processors."""
    types = [model_class(family).config_class.model_type for family in FAMILIES.values()]
    return {name: PROCESSOR_MAPPING_NAMES[name] for name in types}


def find_class(directory: Path) -> ProcessorClass:
    """The class of a checkpoint's processor, one of those of the supported families: the one that a file names, else
    the one of the model's type.

    Raises OSError or ValueError where files cannot be read, or there is no such class.
    """
    for name in NAMING:
        if (directory / name).is_file():
            wanted = of_files(directory / name).get("processor_class")
            if isinstance(wanted, str) and wanted in _known().values():
                return processor_class_from_name(wanted)
    stated = of_files(directory / CONFIG).get("model_type")
    if not isinstance(stated, str) or stated not in _known():
        raise Refused(f"no processor is known for models of type {stated!r}")
    return processor_class_from_name(_known()[stated])


def _has_video(directory: Path) -> bool:
    """Whether a checkpoint says how videos are processed; old ones say it together with images."""
    named = directory / PROCESSOR
    if named.is_file() and VIDEO in of_files(named):
        return True
    return any((directory / name).is_file() for name in ("video_preprocessor_config.json", PICTURES))


def tile_options(family: str, processor: Any, max_tiles: int | None) -> dict[str, Any]:
    """Options with which the image processor cuts a picture into at most ``max_tiles`` tiles.

    Args:
        family: its name.
        max_tiles: thumbnail not counted; None leaves the checkpoint's own choice.

    Raises:
        SettingError: where the family has no such choice.
    """
    if max_tiles is None:
        return {}
    if max_tiles > MAX_TILES:
        raise SettingError(f"max_tiles {max_tiles}: more than any model is used with; give at most {MAX_TILES}")
    known = processor.image_processor.valid_kwargs.__annotations__
    if "max_patches" in known:
        return {"crop_to_patches": True, "max_patches": max_tiles}
    if "pan_and_scan_max_num_crops" in known:  # off unless asked for; a single crop would show the thumbnail again
        return {"do_pan_and_scan": max_tiles > 1, "pan_and_scan_max_num_crops": max_tiles}
    reason = next((why for option, why in REASONS.items() if option in known), "its image processor cannot do that")
    raise SettingError(f"max_tiles {max_tiles}: not with {family}: {reason}; leave it out")
