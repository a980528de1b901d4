"""Checks what methods and scores return before it is used. Errors name the method or the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptprune.errors import MethodError
from ptprune.selection import Selection
from ptprune.settings import plain

if TYPE_CHECKING:
    from ptprune.scores.evidence import ImageEvidence


def check_selection(method: str, selection: Any, image: ImageEvidence, trusted: bool = False) -> Selection:
    """Check that a ``select`` returned a choice of this image's tokens. Returns it with saliency as plain numbers.

    One value is read from the device.

    Raises:
        MethodError: names the method, what it must return and what it did return.
    """

    def expect(holds: bool, what: str, got: Any) -> None:
        if not holds:
            raise MethodError(f"{method}.select must return {what}, got {described(got)}")

    expect(isinstance(selection, Selection), "a Selection", selection)
    tokens, regions, device = image.layout.num_tokens, len(image.layout.regions), image.device
    kept = selection.kept
    right = isinstance(kept, Tensor) and kept.ndim == 1 and kept.dtype == torch.long and kept.device == device
    expect(right and len(kept) > 0, f"kept as a LongTensor of at least one token on {device}", kept)
    if (states := selection.states) is not None:
        size = _state_size(image)
        width = "D" if size is None else size
        right = isinstance(states, Tensor) and states.is_floating_point() and states.device == device
        right = right and states.ndim == 2 and len(states) == len(kept) and size in (None, states.shape[1])
        expect(right, f"states as None or a FloatTensor [{len(kept)}, {width}] on {device}", states)
    if (saliency := selection.saliency) is not None:
        right = isinstance(saliency, Sequence) and len(saliency) == regions and all(map(_is_saliency, saliency))
        expect(right, f"saliency as None or a list of {regions}, a number or None a region", saliency)
    expect(isinstance(selection.scores, dict), "scores as a dictionary", selection.scores)
    for name, scores in selection.scores.items():
        right = isinstance(scores, Tensor) and scores.is_floating_point() and scores.shape == (tokens,)
        expect(right, f"scores[{name!r}] as a FloatTensor [{tokens}]", scores)
    if not trusted:
        _check_indices(method, kept, tokens)
    if saliency is not None:  # NumPy's numbers have no place in the report's JSON
        return replace(selection, saliency=[plain(value) for value in saliency])
    return selection


def _check_indices(method: str, kept: Tensor, number: int) -> None:
    # one read for all three conditions, because each read waits until the device has finished its work
    if not bool((kept[1:] <= kept[:-1]).any() | (kept[0] < 0) | (kept[-1] >= number)):
        return
    outside, steps = kept[(kept < 0) | (kept >= number)].tolist(), kept[1:] - kept[:-1]
    wrong = f"index {outside[0]}" if outside else "unsorted ones" if bool((steps < 0).any()) else "duplicates"
    raise MethodError(f"{method}.select must return sorted unique indices below {number}, got {wrong}")


def _state_size(image: ImageEvidence) -> int | None:
    """The length of a hidden state, if the method needs any."""
    known = [states for states in (image.hidden_states, image.embeddings) if states is not None]
    return known[0].shape[-1] if known else None


def _is_saliency(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def check_scores(whose: str, values: Any, length: int, device: torch.device) -> Tensor:
    """Check that a score returned one number each. Nothing is read from the device.

    Args:
        whose: level and name, for the message.

    Raises:
        MethodError: on anything but a FloatTensor [length] on ``device``.
    """
    right = isinstance(values, Tensor) and values.is_floating_point() and values.shape == (length,)
    if not right or values.device != device:
        raise MethodError(f"{whose} must return a FloatTensor [{length}] on {device}, got {described(values)}")
    return values


def described(value: Any) -> str:
    """Describe a value in a few words for an error message."""
    if isinstance(value, Tensor):
        return f"Tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')} on {value.device}"
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    return "None" if value is None else type(value).__name__
