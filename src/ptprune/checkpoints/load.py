"""``ptprune.load``: a model and its processor by name, on any machine that this package runs on."""

from __future__ import annotations

from typing import Any, NamedTuple

from ptprune.checkpoints.checkpoint import Checkpoint, choose_device, choose_dtype


class Loaded(NamedTuple):
    """A model in evaluation mode on its device, and its processor, which pads on the left."""

    model: Any
    processor: Any


def load(name: str | None = None, *, device: str = "auto", dtype: str = "auto", attention: str | None = None) -> Loaded:
    """Load a checkpoint of a supported family: ``model, processor = load("OpenGVLab/InternVL3-2B-hf")``.

    It gives what ``AutoModelForImageTextToText`` and ``AutoProcessor`` give. ``AutoProcessor`` needs torchvision for
    the video part that most processors have; where that is missing, this loads the same processor for pictures alone.

    Args:
        name: a directory, a Hub name, or None for the small model that ships with this package.
        device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", ...
        dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16".
        attention: "sdpa", "eager" or "flash_attention_2"; None: the model's own choice.

    Raises:
        SettingError: where anything is missing, cannot be read or is not supported.
    """
    target, precision = choose_device(device), choose_dtype(dtype)
    checkpoint = Checkpoint.find(name)
    processor = checkpoint.processor()
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"  # answers begin where prompts end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Loaded(checkpoint.model(target, precision, attention), processor)
