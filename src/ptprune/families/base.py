"""The interface of a model family: it says where things are in a model and never decides what is kept.

See docs/adding-a-family.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from ptprune.families.encoded import Encoded, EncodedImage, Encoding, EvidenceRequest

#: A transformers model. Its attributes have no useful static types.
Model: TypeAlias = Any


INSTRUCTION = "attention of the text after the last picture at the LLM layer before the cut"
NOT_PRUNED = "not pruned: all their tokens stay, with a warning"


@dataclass(frozen=True)
class Encoder:
    """The parts of a vision side that encodes tiles which do not see each other.

    Attributes:
        tower: the module that takes ``pixel_values`` [tiles, 3, height, width], and whose output has a row a tile.
        projector: the module that gets the tower's features, a row a tile, and returns LLM tokens, a row a tile.
        layers: the tower's layers, which take hidden states [tiles, patches, d] first.
        block: patches a side of an LLM token.
        attention: the name of a layer's attention module.
        mixed: whether patches of different tokens meet behind the tower, so that none can be dropped inside it.
    """

    tower: Model
    projector: Model
    layers: Sequence[Model]
    block: int = 1
    attention: str = "self_attn"
    mixed: bool = False


class Family(ABC):
    """One model family. The rest of the package learns about a model only from here.

    Attributes:
        name: short name for messages and tables.
        model_class: the transformers class that this file supports.
        example: a checkpoint that users know.
        stages: "tiles", each level, and possibly "videos" -> one line that says what this family uses.
        grid_positions: whether position ids are (time, row, column) triples, which compact positions cannot renumber.
        repeats_pictures_wrong: whether the stock generate() mixes up a prompt's pictures when beams or several returns
            repeat the prompt.
        deepstack: name of the language model's method ``(hidden_states, visual_mask, features)`` that adds visual
            features to the hidden states after its first layers; None if it has none.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]
    example: ClassVar[str]
    stages: ClassVar[Mapping[str, str]]
    grid_positions: ClassVar[bool] = False
    repeats_pictures_wrong: ClassVar[bool] = False
    deepstack: ClassVar[str | None] = None

    # --- where the parts of the model are -----------------------------------------------------------------------------

    @staticmethod
    def check(model: Model) -> None:
        """Raise TypeError or ValueError if this model's configuration cannot be pruned correctly."""
        return

    @staticmethod
    def multimodal(model: Model) -> Model:
        """The module with ``get_image_features`` that merges image features into the prompt."""
        return model.model

    @staticmethod
    def decoder(model: Model) -> Model:
        """The language model, with ``.layers`` and ``.rotary_emb``."""
        return model.model.language_model

    @classmethod
    def text_attention(cls, model: Model, layer: int) -> Model:
        """The attention module of a language model layer."""
        return cls.decoder(model).layers[layer].self_attn

    @classmethod
    def rotary(cls, model: Model, layer: int, hidden_states: Tensor, position_ids: Tensor) -> Any:
        """The position embeddings that the language model passes to a layer."""
        return cls.decoder(model).rotary_emb(hidden_states, position_ids)

    @staticmethod
    def has_cls(model: Model, call: Mapping[str, Any]) -> bool:
        """Whether the vision encoder's first token is a [CLS]."""
        return False

    @staticmethod
    @abstractmethod
    def vision_attention(model: Model, call: Mapping[str, Any]) -> Model:
        """The attention module of the vision layer whose features this ``get_image_features`` call uses."""

    @staticmethod
    def encoder(model: Model) -> Encoder | None:
        """Where tiles can be left out before they are encoded; None: nowhere."""
        return None

    # --- how the images were encoded ----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def encoded(
        cls,
        model: Model,
        call: Mapping[str, Any],
        output: Any,
        attention: Mapping[str, Tensor],
        wanted: EvidenceRequest,
        encoding: Encoding | None = None,
    ) -> Sequence[Encoded]:
        """The images or tiles that one ``get_image_features`` call encoded, in prompt order.

        Args:
            call: the arguments of ``get_image_features`` by name.
            output: its return value.
            attention: name in ``ImageEvidence`` -> FloatTensor [patches of all images], in the encoder's order.
            encoding: what was encoded, where that is not everything; all else is zeros in ``output`` and ``attention``.
        """

    @classmethod
    @abstractmethod
    def images(cls, gaps: Sequence[Sequence[int]], encoded: Sequence[Any]) -> Sequence[EncodedImage]:
        """The images of one prompt.

        Args:
            gaps: for each element of ``encoded``, the token ids between it and the element before it or the prompt's
                start. Only compare ids: they are stand-ins if the prompt was passed as embeddings.
            encoded: what ``encoded`` returned for this prompt.
        """

    @staticmethod
    def image_token(model: Model) -> int:
        """The token id where image features are merged into the prompt."""
        return model.config.image_token_id

    @staticmethod
    def video_token(model: Model) -> int | None:
        """The token id of video features, which are never pruned; None if the family treats them as image features."""
        return getattr(model.config, "video_token_id", None)


class WholeImages(Family):
    """Families whose ``encoded`` returns whole images."""

    @classmethod
    def images(cls, gaps: Sequence[Sequence[int]], encoded: Sequence[EncodedImage]) -> Sequence[EncodedImage]:
        return encoded
