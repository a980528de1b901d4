"""Loads what is to be evaluated, on this process's device."""

from __future__ import annotations

from typing import Any

import torch

from ptprune.asking.loaded import LoadedModel
from ptprune.checkpoints import Checkpoint
from ptprune.checkpoints.place import choose_device, choose_dtype
from ptprune.checkpoints.tiling import tile_options
from ptprune.lmms.processes import processes


def load(
    model: str | None, device: str, dtype: str, attention: str | None, batch: int, max_tiles: int | None
) -> tuple[LoadedModel, dict[str, Any]]:
    """A checkpoint, ready to answer, and options of its image processor for at most so many tiles a picture.

    Args:
        model: directory, Hub name, or None for the checkpoint that ships.
        device: "auto" and all others as for ``ptprune run``; each of several processes has its own device.
        attention: the model's attention implementation; None for its own choice.
        batch: questions a batch.
        max_tiles: None for the checkpoint's own choice.

    Raises:
        SettingError: for anything that is missing or does not fit.
    """
    precision = choose_dtype(dtype)
    state = processes()
    target = choose_device(device) if state.num_processes == 1 else torch.device(state.device)
    checkpoint = Checkpoint.find(model)
    processor = checkpoint.processor()
    image_options = tile_options(checkpoint.family.name, processor, max_tiles)
    return LoadedModel(checkpoint.model(target, precision, attention), processor, batch), image_options
