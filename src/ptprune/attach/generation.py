"""One call of generate(), as far as pruning must know it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ptprune.families.encoded import EncodedImage
from ptprune.selection import Selection


@dataclass
class Generation:
    """What one call of generate() brought and what was chosen for it.

    Attributes:
        prompt_length: columns of ``input_ids`` as the caller gave them.
        sliced: whether generate() will cut from them what the cache has seen.
        parts: what the vision side left behind; kept here too because accelerate, where it moves the encoder's output
            between devices, copies it and loses the attribute that carries them.
        selections: what the first forward pass chose.
    """

    prompt_length: int
    sliced: bool
    parts: list[EncodedImage] | None = None
    selections: list[Selection] | None = None

    @classmethod
    def of(cls, call: Mapping[str, Any]) -> Generation | None:
        """From the arguments of generate(); None where it starts from nothing."""
        given = (call.get(name) for name in ("input_ids", "inputs", "inputs_embeds"))
        prompt = next((value for value in given if value is not None), None)
        if prompt is None:
            return None
        # a mask longer than the prompt means that the prompt holds new tokens only
        mask, length = call.get("attention_mask"), prompt.shape[1]
        return cls(length, call.get("past_key_values") is not None and (mask is None or mask.shape[1] == length))

    def prompt_columns(self, length: int, seen: int) -> int:
        """How many of the ``length`` new columns of a forward pass are prompt; assisted decoding appends drafts."""
        return min(length, self.prompt_length - (seen if self.sliced else 0))


def named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    if not args:
        return dict(kwargs)  # as nearly always: reading a signature costs more than all the rest of a hook
    arguments = dict(inspect.signature(function).bind_partial(*args, **kwargs).arguments)
    more = arguments.pop("kwargs", {})
    return {**arguments, **more}
