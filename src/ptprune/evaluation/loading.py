"""Loads what is to be evaluated, on this process's device."""

from __future__ import annotations

from typing import Any

import torch

from ptprune.bench.examinee import Examinee
from ptprune.cli import loading
from ptprune.cli.tiling import tile_options
from ptprune.errors import UserError
from ptprune.evaluation.processes import processes
from ptprune.families import family_of

ATTENTION = "eager, sdpa, or flash_attention_2 where it is installed"


def load_examinee(model: str | None, device: str, dtype: str, attention: str | None, batch: int) -> Examinee:
    """A checkpoint, ready to answer.

    Args:
        model: directory, Hub name, or None for the checkpoint that ships.
        device: "auto" and all others as for ``ptprune run``; of several processes each has its own device.
        attention: the model's attention implementation; None for its own choice.
        batch: questions a batch.

    Raises:
        UserError: for anything that is not there or does not fit.
    """
    name, precision = model or loading.SHIPPED, loading.choose_dtype(dtype)
    state = processes()
    target = loading.choose_device(device) if state.num_processes == 1 else torch.device(state.device)
    directory = loading.find(model)
    processor = loading.load_processor(directory, name)
    loaded: Any = loading.load_model(directory, name, target, precision)
    if attention is not None:
        try:
            loaded.set_attn_implementation(attention)
        except ImportError as error:
            raise UserError(f"--attention {attention}: {loading.first_line(error)}; give {ATTENTION}") from None
        except ValueError:
            raise UserError(f"--attention {attention}: unknown here; give {ATTENTION}") from None
    return Examinee(loaded, processor, batch)


def tiles_of(examinee: Examinee, max_tiles: int | None) -> dict[str, Any]:
    """Options of the image processor for at most so many tiles a picture.

    Raises:
        UserError: where the family has no such choice.
    """
    return tile_options(family_of(examinee.model).name, examinee.processor, max_tiles)
