"""One call of generate(), as far as pruning must know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptprune.conventions import ModelCall
from ptprune.errors import BrokenPass
from ptprune.families.encoded import Encoded
from ptprune.selection import Selection


@dataclass
class Generation:
    """What one call of generate() brought and what was chosen for it.

    Attributes:
        prompt_length: columns of ``input_ids`` as the caller gave them.
        sliced: whether generate() will cut from them what the cache has seen.
        encoded: what the vision side left behind; kept here too because accelerate, where it moves the encoder's output
            between devices, copies it and loses the attribute that carries them.
        arrived: whether a forward pass was given the images since they were encoded.
        selections: what the first forward pass chose.
    """

    prompt_length: int
    sliced: bool
    encoded: Sequence[Encoded] | None = None
    arrived: bool = False
    selections: list[Selection] | None = None

    @classmethod
    def of(cls, call: ModelCall) -> Generation | None:
        """From the arguments of generate(); None where it starts from nothing."""
        if (prompt := call.prompt) is None:
            return None
        # a mask longer than the prompt means that the prompt holds new tokens only
        length = prompt.shape[1]
        return cls(length, call.cache is not None and (call.mask is None or call.mask.shape[1] == length))

    def prompt_columns(self, length: int, seen: int) -> int:
        """How many of the ``length`` new columns of a forward pass are prompt; assisted decoding appends drafts."""
        return min(length, self.prompt_length - (seen if self.sliced else 0))

    def check_arrival(self, has_images: bool) -> None:
        """Images that were encoded for this call must come with its first forward pass.

        Raises:
            BrokenPass: where they do not, under any name that is known: the prompt would pass unpruned.
        """
        if self.encoded is not None and not self.arrived and not has_images:
            raise BrokenPass("generate() encoded the pictures, but the model was called without them")
        self.arrived |= has_images
