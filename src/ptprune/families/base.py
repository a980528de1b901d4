"""What one file per model family says, and nothing more: where things are. Families never decide what is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from ptprune.layout import Region

#: A transformers model. Its attributes have no useful static types.
Model: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """What the vision side of one call leaves behind for the language side, one row a tile or thumbnail.

    Attributes:
        cls_features: [encoded, d], or None where no stage needs it.
        cls_attention: FloatTensor [encoded, tokens per row], pooled to LLM tokens, or None.
        preview: FloatTensor [encoded, 3, p, p], tiny copies of the pixels, from which a report reads the tile grid.
        tokens_per_row: LLM tokens of one tile.
    """

    cls_features: Tensor | None
    cls_attention: Tensor | None
    preview: Tensor
    tokens_per_row: int


class Family(ABC):
    """One model family. Everything that the rest of the package must know of a model goes through here.

    Attributes:
        name: short name for messages and tables.
        model_class: the transformers class that this file supports.
        example: a checkpoint that users know.
        stages: level -> one line on what the level uses in this family.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]
    example: ClassVar[str]
    stages: ClassVar[Mapping[str, str]]

    @staticmethod
    @abstractmethod
    def check(model: Model) -> None:
        """Raise TypeError or ValueError where this very model cannot be pruned right."""

    @staticmethod
    @abstractmethod
    def multimodal(model: Model) -> Model:
        """The module with ``get_image_features`` that merges image features into the prompt."""

    @staticmethod
    @abstractmethod
    def decoder(model: Model) -> Model:
        """The language model, with ``.layers`` and ``.rotary_emb``."""

    @staticmethod
    @abstractmethod
    def text_attention(model: Model, layer: int) -> Model:
        """The attention module of a language model layer."""

    @staticmethod
    @abstractmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        """The attention module of the vision layer whose features this ``get_image_features`` call uses."""

    @staticmethod
    @abstractmethod
    def encoded(
        model: Model, call: Mapping[str, Any], output: Any, cls_row: Tensor | None, features: bool
    ) -> EncodedImages:
        """The evidence of one ``get_image_features`` call; ``cls_row``: [encoded, patches]."""

    @staticmethod
    @abstractmethod
    def placeholders(model: Model, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """BoolTensor [batch, length]: where the prompt holds visual tokens."""

    @staticmethod
    @abstractmethod
    def regions(encoded: EncodedImages, num_tokens: int) -> tuple[Region, ...]:
        """The regions of one image, from the length of its run of visual tokens.

        Raises:
            ValueError: where no image of this family has that many tokens.
        """

    @staticmethod
    @abstractmethod
    def places(previews: Tensor, regions: tuple[Region, ...]) -> list[tuple[int, int]]:
        """(row, column) of each region of one image in its tile grid, (-1, -1) for the thumbnail."""
