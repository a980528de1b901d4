"""Loads the processor of any supported checkpoint, with or without torchvision, and limits its tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.utils import is_torchvision_available

from ptprune.checkpoints.cohere2_vision import Cohere2VisionImageProcessorPil
from ptprune.checkpoints.image_only import VIDEO, Processor, ProcessorClass, image_only
from ptprune.errors import Refused, SettingError

# Files that can name the processor's class, in the order in which AutoProcessor asks them.
NAMING = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "config.json")

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
    part, it is the same class for pictures and text only; without torchvision on Pillow.

    Raises:
        OSError, ValueError: where files are missing, cannot be read, or name no processor.
    """
    processor_class = find_class(Path(directory))
    if is_torchvision_available() and (image_only(processor_class) is processor_class or _has_video(Path(directory))):
        return AutoProcessor.from_pretrained(directory, local_files_only=True)
    if not is_torchvision_available() and (images := ON_PILLOW.get(processor_class.__name__)) is not None:
        parts = [part.from_pretrained(directory, local_files_only=True) for part in (images, AutoTokenizer)]
        settings, _ = image_only(processor_class).get_processor_dict(directory, local_files_only=True)
        return image_only(processor_class).from_args_and_dict(parts, settings)
    return image_only(processor_class).from_pretrained(directory, local_files_only=True)


def find_class(directory: Path) -> ProcessorClass:
    """The class of a checkpoint's processor: the one that a file names, else the one of the model's type.

    Raises OSError or ValueError where files cannot be read, or there is no such class.
    """
    for name in NAMING:
        if (directory / name).is_file():
            wanted = json.loads((directory / name).read_text(encoding="utf-8")).get("processor_class")
            found = processor_class_from_name(wanted) if wanted else None
            if found is not None:
                return found
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    if type(config) not in PROCESSOR_MAPPING:
        raise Refused(f"no processor is known for models of type {config.model_type!r}")
    return PROCESSOR_MAPPING[type(config)]


def _has_video(directory: Path) -> bool:
    """Whether a checkpoint says how videos are processed; old ones say it together with images."""
    named = directory / "processor_config.json"
    if named.is_file() and VIDEO in json.loads(named.read_text(encoding="utf-8")):
        return True
    return any((directory / name).is_file() for name in ("video_preprocessor_config.json", "preprocessor_config.json"))


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
    known = processor.image_processor.valid_kwargs.__annotations__
    if "max_patches" in known:
        return {"crop_to_patches": True, "max_patches": max_tiles}
    if "pan_and_scan_max_num_crops" in known:  # off unless asked for; a single crop would show the thumbnail again
        return {"do_pan_and_scan": max_tiles > 1, "pan_and_scan_max_num_crops": max_tiles}
    reason = next((why for option, why in REASONS.items() if option in known), "its image processor cannot do that")
    raise SettingError(f"max_tiles {max_tiles}: not with {family}: {reason}; leave it out")
