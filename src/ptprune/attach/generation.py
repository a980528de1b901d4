"""What pruning must know about one call of generate()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptprune.attach.cache import seen_by
from ptprune.attach.prompt import Past, Prompt
from ptprune.attach.static import Lengths, StandIn
from ptprune.conventions import ModelCall
from ptprune.errors import BrokenPass
from ptprune.families.base import Family, Model
from ptprune.families.encoded import Encoded
from ptprune.selection import Selection


@dataclass
class Generation:
    """One call of generate() and the tokens that were chosen for it.

    Attributes:
        prompt_length: columns of the caller's ``input_ids``.
        sliced: whether generate() will cut off the columns that the cache has seen.
        encoded: the images from the vision side. The encoder's output carries them too, but accelerate loses that
            attribute if it copies the output between devices.
        arrived: whether a forward pass got the images after they were encoded.
        selections: what the first forward pass chose.
        lengths: of the static buffers that generate() makes; None where the caller brings a cache.
        stand_in: of a static cache, from where generate() makes masks for it until the prefill is over.
        call: the call of generate() itself.
    """

    prompt_length: int
    sliced: bool
    encoded: Sequence[Encoded] | None = None
    arrived: bool = False
    selections: list[Selection] | None = None
    lengths: Lengths | None = None
    stand_in: StandIn | None = None
    call: ModelCall | None = None

    @classmethod
    def of(cls, call: ModelCall) -> Generation | None:
        """Read the arguments of generate(). None if it has no prompt."""
        if (prompt := call.prompt) is None:
            return None
        # a mask that is longer than the prompt means that the prompt holds only new tokens
        length = prompt.shape[1]
        sliced = call.cache is not None and (call.mask is None or call.mask.shape[1] == length)
        return cls(length, sliced, call=call)

    def new_prompt(self, family: type[Family], model: Model) -> Prompt:
        """The prompt as the first forward pass will get it: without what the cache has seen."""
        assert self.call is not None
        seen = seen_by(self.call.cache) if self.sliced else 0
        given = {name: self.call.get(name) for name in ("input_ids", "inputs", "inputs_embeds")}
        new = {name: value[:, seen:] for name, value in given.items() if value is not None}
        if "inputs" in new:
            new["input_ids"] = new.pop("inputs")
        call = ModelCall(new)
        assert call.prompt is not None
        return Prompt.read(call, family, model, Past(0), call.prompt.shape[1])

    def prompt_columns(self, length: int, seen: int) -> int:
        """How many of a forward pass's ``length`` new columns are prompt; assisted decoding appends drafts to it."""
        return min(length, self.prompt_length - (seen if self.sliced else 0))

    def begin_static(self, cache: Any) -> None:
        """Let dynamic layers stand in for those of a static cache."""
        if self.stand_in is None or self.stand_in.settled:
            self.stand_in = StandIn(cache, self.lengths)

    def check_arrival(self, has_images: bool) -> None:
        """Check that the first forward pass gets the images that were encoded for this call.

        Raises:
            BrokenPass: if they arrive under no known name, because the prompt would stay unpruned.
        """
        if self.encoded is not None and not self.arrived and not has_images:
            raise BrokenPass("generate() encoded the pictures, but the model was called without them")
        self.arrived |= has_images
