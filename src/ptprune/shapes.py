"""The dimensions of a tiled vision-language model: all that counting its cost needs. No weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ptprune.errors import Refused

DENSE_DECODERS = ("internlm2", "llama", "mistral", "qwen2", "qwen3")
"""Decoders whose layer is attention (q, k, v, o) and a gated MLP of three matrices, which is what ``cost`` counts."""

FAMILIES = ("internvl", "llava_next")
"""Families whose vision tower and projector are what ``cost`` counts, by transformers' model type."""


VISION_FIELDS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
}
TEXT_FIELDS = VISION_FIELDS | {
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocabulary": "vocab_size",
    "decoder": "model_type",
}
"""Fields of shapes -> names in transformers' configurations."""


@dataclass(frozen=True)
class VisionShape:
    """A ViT that encodes one tile at a time."""

    layers: int
    width: int
    ffn: int  # inner size of the MLP (two matrices)
    heads: int
    patches: int  # of one tile; a [CLS] token comes on top
    patch_values: int  # numbers in one patch (channels x height x width)

    def to_config(self) -> dict[str, Any]:
        """The part of transformers' vision configuration that does not depend on the family."""
        return {name: getattr(self, field) for field, name in VISION_FIELDS.items()}


@dataclass(frozen=True)
class TextShape:
    """A dense decoder with grouped-query attention and a gated MLP (three matrices)."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    decoder: str = "llama"  # transformers' model type, one of ``DENSE_DECODERS``; counting does not look at it

    def to_config(self) -> dict[str, Any]:
        """As transformers' configurations of such decoders name it."""
        return {name: getattr(self, field) for field, name in TEXT_FIELDS.items()}


@dataclass(frozen=True)
class ModelShape:
    """Vision tower, projector (two matrices: the patches of a token -> text width -> text width) and decoder.

    Attributes:
        tile_tokens: LLM tokens of one tile or thumbnail. LLaVA-NeXT ends each row of its merged grid of tiles with a
            newline token: those are never pruned, count them as text.
        family: transformers' model type, one of ``FAMILIES``.
    """

    name: str
    vision: VisionShape
    text: TextShape
    tile_tokens: int
    family: str = "internvl"

    @property
    def projector_input(self) -> int:
        """Width of an LLM token before the projector: the patches that make it."""
        return self.vision.width * self.vision.patches // self.tile_tokens

    @classmethod
    def from_config(cls, config: Any, name: str = "") -> ModelShape:
        """Read the shape from an ``InternVLConfig`` or a ``LlavaNextConfig`` of transformers.

        Raises:
            Refused: for other families, for decoders that are not dense (mixtures of experts), and for a LLaVA-NeXT
                that does not use all patches, and nothing else, of one layer of a CLIP.
        """
        family = getattr(config, "model_type", None)
        if family not in FAMILIES:
            allowed = ", ".join(map(repr, FAMILIES))
            raise Refused(f"cannot count a model of type {family!r}; allowed: {allowed}")
        vision, text = config.vision_config, config.text_config
        if text.model_type not in DENSE_DECODERS:
            raise Refused(f"cannot count a decoder of type {text.model_type!r}; allowed: {', '.join(DENSE_DECODERS)}")
        if family == "llava_next":
            _check_llava(config)
        sides = (vision.image_size, vision.patch_size)  # configurations of square ones hold one number
        tile, patch = ([side, side] if isinstance(side, int) else side for side in sides)
        patches = (tile[0] // patch[0]) * (tile[1] // patch[1])
        encoder = {field: getattr(vision, name) for field, name in VISION_FIELDS.items()}
        decoder = {field: getattr(text, name) for field, name in TEXT_FIELDS.items() if field != "head_dim"}
        decoder["kv_heads"] = decoder["kv_heads"] or text.num_attention_heads
        decoder["head_dim"] = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            name=name or family,
            vision=VisionShape(**encoder, patches=patches, patch_values=vision.num_channels * prod(patch)),
            text=TextShape(**decoder),
            tile_tokens=round(patches * getattr(config, "downsample_ratio", 1) ** 2),
            family=family,
        )


def _check_llava(config: Any) -> None:
    """Raises Refused where tokens are not the patches of one layer of a CLIP."""
    for name, value, allowed in (
        ("vision tower", config.vision_config.model_type, "clip_vision_model"),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, "default"),
    ):
        if value != allowed:
            raise Refused(f"cannot count a LLaVA-NeXT with {name} {value!r}; allowed: {allowed!r}")
    if not isinstance(config.vision_feature_layer, int):
        raise Refused(f"cannot count a LLaVA-NeXT with several feature layers {config.vision_feature_layer}")


# 448-pixel tiles, 14-pixel patches, 2x2 pixel shuffle: 1024 patches, 256 LLM tokens a tile.
_INTERNVIT_300M = VisionShape(layers=24, width=1024, ffn=4096, heads=16, patches=1024, patch_values=3 * 14 * 14)
# 336-pixel tiles, 14-pixel patches, each an LLM token.
_CLIP_L = VisionShape(layers=24, width=1024, ffn=4096, heads=16, patches=576, patch_values=3 * 14 * 14)

SHAPES: dict[str, ModelShape] = {
    name: ModelShape(name, _INTERNVIT_300M, text, tile_tokens=256)
    for name, text in {
        # layers, width, ffn, heads, kv heads, head dim, vocabulary, decoder (InternLM2 is a Llama in other names)
        "internvl2-2b": TextShape(24, 2048, 8192, 16, 8, 128, 92553),
        "internvl2-8b": TextShape(32, 4096, 14336, 32, 8, 128, 92553),
        "internvl2.5-2b": TextShape(24, 2048, 8192, 16, 8, 128, 92553),
        "internvl2.5-4b": TextShape(36, 2048, 11008, 16, 2, 128, 151674, decoder="qwen2"),
        "internvl2.5-8b": TextShape(32, 4096, 14336, 32, 8, 128, 92553),
        "internvl3-1b": TextShape(24, 896, 4864, 14, 2, 64, 151674, decoder="qwen2"),
        "internvl3-2b": TextShape(28, 1536, 8960, 12, 2, 128, 151674, decoder="qwen2"),
        "internvl3-8b": TextShape(28, 3584, 18944, 28, 4, 128, 151674, decoder="qwen2"),
    }.items()
} | {
    "llava-next-7b": ModelShape(
        "llava-next-7b", _CLIP_L, TextShape(32, 4096, 11008, 32, 32, 128, 32064), tile_tokens=576, family="llava_next"
    )
}
"""Published models by name, from their public configurations: no download needed. LLaVA-NeXT has a Vicuna."""
