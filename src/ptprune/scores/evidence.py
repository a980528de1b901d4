"""The evidence from which a method chooses the tokens of one image."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ptprune.errors import Refused
from ptprune.layout import ImageLayout
from ptprune.selection import Selection

# Evidence that comes from the same place: the encoder's attention, the question's, the inputs of the first layer.
PATCH_ATTENTION = frozenset({"encoder_attention", "received_attention"})
INSTRUCTION_ROWS = frozenset({"instruction_attention", "last_attention", "instruction_map"})
EMBEDDINGS = frozenset({"embeddings", "instruction_embeddings"})


@dataclass(frozen=True, eq=False)
class ImageEvidence:
    """Raw material for the scores of one image. Fields that the method does not name in ``needs`` are None.

    Attributes:
        layout: the image's regions and tokens.
        stage: counts the layers before which the method drops tokens, from 0.
        last: whether no such layer follows.
        earlier: what the method chose at the layer before: ``kept`` are the tokens of this evidence, among those of
            ``scores``. None at the first.
        region_features: FloatTensor [num_regions, d], the vision encoder's [CLS] of each region, or the mean over its
            patches if the encoder has none.
        image_feature: FloatTensor [d], the feature of the whole image, computed with ``region_features``: the
            thumbnail's, or the mean over all patches if the image has no thumbnail.
        encoder_attention: FloatTensor [num_tokens], the attention that [CLS] pays at the feature layer, pooled to LLM
            tokens; equal to ``received_attention`` if the encoder has no [CLS].
        received_attention: FloatTensor [num_tokens], the mean attention that all patches of a tile pay to the token.
        token_features: [num_tokens, d], the vision encoder's features before the projector, pooled to LLM tokens.
        pixels: FloatTensor [3, height, width], a small copy of the whole picture, as the processor normalised it.
        instruction_attention: FloatTensor [num_tokens], the strongest attention that any instruction token pays at one
            LLM layer.
        last_attention: FloatTensor [num_tokens], the attention that the last instruction token pays there.
        instruction_map: FloatTensor [instruction tokens, num_tokens], the attention that each of them pays there.
        embeddings: [num_tokens, D], the visual tokens at the input of the language model's first layer.
        instruction_embeddings: [instruction tokens, D], the instruction's tokens at the input of that layer.
        hidden_states: [num_tokens, D], the visual tokens at the input of the layer before which tokens are dropped.
    """

    layout: ImageLayout
    stage: int = 0
    last: bool = True
    earlier: Selection | None = None
    region_features: Tensor | None = None
    image_feature: Tensor | None = None
    encoder_attention: Tensor | None = None
    received_attention: Tensor | None = None
    token_features: Tensor | None = None
    pixels: Tensor | None = None
    instruction_attention: Tensor | None = None
    last_attention: Tensor | None = None
    instruction_map: Tensor | None = None
    embeddings: Tensor | None = None
    instruction_embeddings: Tensor | None = None
    hidden_states: Tensor | None = None

    @cached_property
    def device(self) -> torch.device:
        return self.layout.tokens.device

    def finite(self, name: str) -> Tensor:
        """The named tensor in float32.

        Raises:
            Refused: if it was not computed, or holds NaN or infinite values, which cannot be ranked.
        """
        values = self.require(name).float()
        if not bool(torch.isfinite(values).all()):
            raise Refused(f"{name} holds NaN or infinite values: the model's activations overflowed")
        return values

    def require(self, name: str) -> Tensor:
        """The named tensor.

        Raises:
            Refused: if it was not computed because the method did not name it in ``needs``.
        """
        value = getattr(self, name)
        if value is None:
            raise Refused(f"{name} was not computed for this image: name it in the method's `needs`")
        return value


NAMES = tuple(each.name for each in fields(ImageEvidence) if each.type == "Tensor | None")
"""The evidence that a method or a score may name in ``needs``."""


def wrong_needs(needs: Any) -> str | None:
    """Describe the error in a collection of needs; None if there is none."""
    if isinstance(needs, str) or not isinstance(needs, Collection):
        return f"write a collection of names such as ('encoder_attention',), got {needs!r}"
    if not (unknown := [need for need in needs if need not in NAMES]):
        return None
    close = sorted({match for need in unknown for match in get_close_matches(str(need), NAMES)})
    likely = f" (did you mean {', '.join(map(repr, close))}?)" if close else ""
    return f"{', '.join(map(repr, unknown))}{likely}; there are {', '.join(NAMES)}"
