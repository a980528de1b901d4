"""Runs the package's guarantees on a user's own checkpoint, machine and versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from PIL import Image

from ptprune.families.base import Model
from ptprune.methods import PyramidTokenPruning
from ptprune.verification import stock
from ptprune.verification.checks import Check, Examination, Verification
from ptprune.verification.prompts import drawn_pictures, inputs_of


def verify(
    model: Model,
    processor: Any,
    pictures: Sequence[Image.Image] | None = None,
    *,
    image_options: Mapping[str, Any] | None = None,
    keep_ratio: float = 0.5,
    new_tokens: int = 8,
) -> Verification:
    """Compare a pruned model with the stock one that is made to ignore the same tokens.

    About thirty forward passes over one or two prompts. In half precision the stock model's own noise is the yardstick.

    Args:
        model: of a supported family, in evaluation mode, with any attention implementation.
        processor: the checkpoint's own.
        pictures: the first is asked about alone, the first two as a batch; two are drawn where none is given.
        image_options: of the image processor, instead of its own.
        keep_ratio: below 1.
        new_tokens: length of the answers that are compared.

    Raises:
        UnsupportedModel, AttachError, Refused, UnknownTransformers: where a pruner cannot be attached at all.
    """
    from ptprune import __version__

    for layer in (0, PyramidTokenPruning().layer):
        with PyramidTokenPruning(layer=layer)(model):
            pass
    shown = list(pictures or drawn_pictures())
    one = inputs_of(model, processor, shown[:1], image_options)
    two, why_not = None, ""
    try:
        other = shown[1] if len(shown) > 1 else shown[0].rotate(90, expand=True)
        two = inputs_of(model, processor, [shown[0], other], image_options)
    except Exception as error:  # a processor or tokenizer without padding
        why_not = f"the processor makes no batch: {' '.join(str(error).split())}"
    measured = stock.measure(model, one, two)
    examination = Examination(model, processor, measured, new_tokens, keep_ratio)
    return Verification(
        model=type(model).__name__,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "ptprune": __version__,
        },
        device=str(next(model.parameters()).device),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=stock.implementation(model),
        noise=measured,
        checks=examination.checks(one, two, why_not),
    )


__all__ = ["Check", "Verification", "verify"]
