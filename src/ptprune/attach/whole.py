"""One forward pass in which every token stays: it is checked and reported, and nothing is computed for it.

The report is written from the prompt and the pictures when it is first read. Until then it holds the tensors that the
caller passed; change none of them in place before.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from ptprune.attach import refusals
from ptprune.attach.cache import check_length
from ptprune.attach.generation import Generation
from ptprune.attach.prompt import Past, Prompt
from ptprune.attach.setup import Setup
from ptprune.attach.stage import Stage
from ptprune.conventions import MASK, ModelCall
from ptprune.errors import BrokenPass
from ptprune.families.encoded import Encoded
from ptprune.report import PruningReport


class WholePass:
    """A forward pass of the multimodal model, with pictures and a cache from which nothing was dropped."""

    def __init__(self, setup: Setup, generation: Generation | None) -> None:
        self.setup, self.generation = setup, generation
        self._encoded: Sequence[Encoded] | None = None
        self._undo = ExitStack()

    def begin(self, call: ModelCall, training: bool) -> None:
        """Refuse what a pass that prunes refuses, and have the report recorded once the language model has run.

        Raises:
            Refused: if the call could not be pruned correctly.
        """
        given, cache, generation = call.prompt, call.cache, self.generation
        assert given is not None
        refusals.check_mask(call.mask)
        refusals.check_attention(self.setup.implementation)
        refusals.check_images(call, self.setup.model, training)
        new, seen = given.shape[1], cache.get_seq_length() if cache is not None else 0
        check_length(cache, call.mask, new)
        if (outputs := call.encoded_images) is not None:
            encoded = getattr(outputs, "ptprune", None)
            encoded = generation.encoded if encoded is None and generation is not None else encoded
            if encoded is None:
                refusals.refuse_encoded()
            self.receive(encoded)
        # the pictures and the cache are not held
        held = ModelCall({name: call.get(name) for name in ("input_ids", "inputs_embeds", MASK)})
        length = new if generation is None else generation.prompt_columns(new, seen)
        decoder: nn.Module = self.setup.family.decoder(self.setup.model)
        hook = decoder.register_forward_hook(functools.partial(self._record, held, Past(seen), length))
        self._undo.callback(hook.remove)

    @property
    def waits_for_images(self) -> bool:
        return self._encoded is None

    def receive(self, encoded: Sequence[Encoded]) -> None:
        """Take the encoded images."""
        self._encoded = encoded

    def _record(self, call: ModelCall, past: Past, length: int, module: nn.Module, args: Any, output: Any) -> None:
        if self._encoded is None:
            raise BrokenPass("the language model was reached before the pictures went through get_image_features")
        self.setup.pruner.record(functools.partial(_report, self.setup, call, past, length, self._encoded), heavy=True)

    def close(self) -> None:
        """Remove the hook of this pass."""
        self._undo.close()


def _report(setup: Setup, call: ModelCall, past: Past, length: int, encoded: Sequence[Encoded]) -> PruningReport:
    prompt = Prompt.read(call, setup.family, setup.model, past, length)
    stage = Stage.first(prompt, setup.family, encoded)
    stage.keep_all()
    return stage.writer(prompt.valid)()
