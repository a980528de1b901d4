"""The dimensions of a tiled vision-language model: all that counting its cost needs. No weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DENSE_DECODERS = ("internlm2", "llama", "mistral", "qwen2", "qwen3")
"""Decoders whose layer is attention (q, k, v, o) and a gated MLP of three matrices, which is what ``cost`` counts."""


@dataclass(frozen=True)
class VisionShape:
    """A ViT that encodes one tile at a time.

    Attributes:
        layers, width, ffn: depth, hidden size, inner size of the MLP (two matrices).
        patches: patches of one tile; a [CLS] token comes on top.
        patch_values: numbers in one patch (channels x height x width).
    """

    layers: int
    width: int
    ffn: int
    patches: int
    patch_values: int


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


@dataclass(frozen=True)
class ModelShape:
    """Vision tower, projector (two matrices: pixel-shuffled patches -> text width -> text width) and decoder.

    Attributes:
        tile_tokens: LLM tokens of one tile or thumbnail.
    """

    name: str
    vision: VisionShape
    text: TextShape
    tile_tokens: int

    @property
    def projector_input(self) -> int:
        """Width of an LLM token before the projector: the patches that pixel shuffle packs into it."""
        return self.vision.width * self.vision.patches // self.tile_tokens

    @classmethod
    def from_config(cls, config: Any, name: str = "") -> ModelShape:
        """Read the shape from an ``InternVLConfig`` of transformers.

        Raises:
            ValueError: for other families, and for decoders that are not dense (mixtures of experts).
        """
        if getattr(config, "model_type", None) != "internvl":
            raise ValueError(
                f"cannot count a model of type {getattr(config, 'model_type', None)!r}; allowed: 'internvl'"
            )
        vision, text = config.vision_config, config.text_config
        if text.model_type not in DENSE_DECODERS:
            raise ValueError(
                f"cannot count a decoder of type {text.model_type!r}; allowed: {', '.join(DENSE_DECODERS)}"
            )
        rows, columns = (size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True))
        return cls(
            name=name or "internvl",
            vision=VisionShape(
                layers=vision.num_hidden_layers,
                width=vision.hidden_size,
                ffn=vision.intermediate_size,
                patches=rows * columns,
                patch_values=vision.num_channels * vision.patch_size[0] * vision.patch_size[1],
            ),
            text=TextShape(
                layers=text.num_hidden_layers,
                width=text.hidden_size,
                ffn=text.intermediate_size,
                heads=text.num_attention_heads,
                kv_heads=text.num_key_value_heads or text.num_attention_heads,
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                vocabulary=text.vocab_size,
            ),
            tile_tokens=round(rows * columns * config.downsample_ratio**2),
        )


# 448-pixel tiles, 14-pixel patches, 2x2 pixel shuffle: 1024 patches, 256 LLM tokens a tile.
_INTERNVIT_300M = VisionShape(layers=24, width=1024, ffn=4096, patches=1024, patch_values=3 * 14 * 14)

SHAPES: dict[str, ModelShape] = {
    name: ModelShape(name, _INTERNVIT_300M, TextShape(*text), tile_tokens=256)
    for name, text in {
        # layers, width, ffn, heads, kv heads, head dim, vocabulary
        "internvl2-2b": (24, 2048, 8192, 16, 8, 128, 92553),
        "internvl2-8b": (32, 4096, 14336, 32, 8, 128, 92553),
        "internvl2.5-2b": (24, 2048, 8192, 16, 8, 128, 92553),
        "internvl2.5-4b": (36, 2048, 11008, 16, 2, 128, 151674),
        "internvl2.5-8b": (32, 4096, 14336, 32, 8, 128, 92553),
        "internvl3-1b": (24, 896, 4864, 14, 2, 64, 151674),
        "internvl3-2b": (28, 1536, 8960, 12, 2, 128, 151674),
        "internvl3-8b": (28, 3584, 18944, 28, 4, 128, 151674),
    }.items()
}
"""Published InternVL models by name, from their public configurations: no download needed."""
