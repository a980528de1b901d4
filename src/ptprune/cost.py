"""The cost of a prompt, counted from a model's dimensions alone: multiply-accumulates and bytes, no weights, no torch.

How it is counted:

- One multiply-accumulate (MAC) is one multiplication with its addition; FLOPs are twice that. Papers that print
  "FLOPs" of token pruning often mean MACs.
- Matrix products only. Norms, activations, softmax, rotary tables and embedding look-ups are left out: together they
  are well below a percent.
- Attention is counted full, not causal: n queries times n keys. That is what eager and masked sdpa kernels compute; a
  causal flash kernel skips half of the attention's share.
- ``prefill`` is the decoder's layers; ``lm_head`` is one position of the output head, since generation computes only
  the last. ``decode_per_token`` is one new token: layers over the cached context, plus the output head.
- Dropping tokens before layer k: layers 0..k-1 run on all of them, the others on those that stay. Where tokens are
  dropped more than once, every layer runs on what the cuts before it left.
- ``select`` is what the scores themselves cost: a [CLS] row of ViT attention a tile (computed for all heads in one
  product with a block-diagonal matrix, heads times the multiplications that it needs), and the attention rows of the
  instruction (at most all text tokens) over all keys of one decoder layer. With k = 0 that layer's queries, keys and
  values are computed for it, once more than they would be (values are of no use: the layer computes them on the way);
  with k > 0 queries and keys are there already. What a method does with the scores is not counted:
  the product of all of an image's embeddings that PTP's default compares is 0.6% of the prefill of InternVL3-1B at 3328
  visual tokens.
- ``Encoding``: tiles that are left out cost neither the tower nor the projector; those that get another tile's features
  do pass the projector. Patches that are dropped before a
  layer of the tower cost the layers before that one, and the projector. Their scores, one more row of attention, count
  in ``select``; what chooses tiles by their pixels does not count.
- KV bytes are keys and values of every decoder layer for the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ptprune.budget import halfway, passing
from ptprune.errors import SettingError
from ptprune.shapes import ModelShape, TextShape, VisionShape

if TYPE_CHECKING:
    from ptprune.encoding import EncoderSettings


def vision_macs(vision: VisionShape, patches: int | None = None, layer: int = 0) -> int:
    """The ViT on one tile, [CLS] included.

    Args:
        patches: those that layers from ``layer`` on see; None: all.
    """

    def one_layer(tokens: int) -> int:
        linear = tokens * (4 * vision.width**2 + 2 * vision.width * vision.ffn)
        return linear + 2 * tokens**2 * vision.width

    left = vision.patches if patches is None else patches
    embedding = vision.patches * vision.patch_values * vision.width
    return embedding + layer * one_layer(vision.patches + 1) + (vision.layers - layer) * one_layer(left + 1)


def projector_macs(shape: ModelShape) -> int:
    """The projector on one tile."""
    width = shape.text.width
    return shape.tile_tokens * (shape.projector_input * width + width**2)


def linear_macs(text: TextShape) -> int:
    """The matrices of one decoder layer on one token."""
    queries = text.heads * text.head_dim
    keys = text.kv_heads * text.head_dim
    return text.width * (2 * queries + 2 * keys + 3 * text.ffn)


def attention_macs(text: TextShape, queries: int, keys: int) -> int:
    """One decoder layer's attention: scores and weighted values."""
    return 2 * queries * keys * text.heads * text.head_dim


def prefill_macs(text: TextShape, tokens: int, stages: Sequence[tuple[int, int]] = ()) -> int:
    """The decoder's layers on a prompt.

    Args:
        tokens: of the prompt.
        stages: (layer, tokens of the prompt from there on) of each cut, in order.
    """
    macs, layer = 0, 0
    for following, left in (*stages, (text.layers, 0)):
        macs += (following - layer) * (tokens * linear_macs(text) + attention_macs(text, tokens, tokens))
        layer, tokens = following, left
    return macs


def head_macs(text: TextShape) -> int:
    """The output head on one position."""
    return text.width * text.vocabulary


def decode_macs(text: TextShape, context: int) -> int:
    """One new token over ``context`` cached ones (itself included)."""
    return text.layers * (linear_macs(text) + attention_macs(text, 1, context)) + head_macs(text)


def kv_bytes(text: TextShape, tokens: int, itemsize: int = 2) -> int:
    """Keys and values of ``tokens`` tokens in all layers."""
    return 2 * text.layers * text.kv_heads * text.head_dim * tokens * itemsize


def row_macs(vision: VisionShape, patches: int, rows: int = 1) -> int:
    """Rows of a tile's attention map over ``patches`` patches and [CLS]; see ``select_macs``."""
    scores = rows * (patches + 1) * vision.width
    # a single row is one product with a block-diagonal matrix: every head over the widths of all
    return scores * vision.heads if rows == 1 else scores


def patch_rows_of(vision: VisionShape, needs: frozenset[str]) -> int:
    """Rows of a tile's attention map that a method with such needs reads; see ``select_macs``."""
    return vision.patches + 1 if "received_attention" in needs else int("encoder_attention" in needs)


def select_macs(
    shape: ModelShape,
    encoded: int,
    tokens: int,
    stages: Sequence[tuple[int, int]],
    instruction: int,
    patch_rows: int = 1,
    patches: int | None = None,
) -> int:
    """The scores: rows of ViT attention of ``encoded`` tiles, and ``instruction`` rows over the prompt at every cut.

    Args:
        tokens, stages: as in ``prefill_macs``.
        instruction: 0 for a method that does not look at the language model's attention.
        patch_rows: rows of a tile's attention map: 1 for [CLS] alone, ``patches + 1`` for all, 0 for none.
        patches: of a tile at the layer whose features are used; None: all.
    """
    text, vision = shape.text, shape.vision
    macs = encoded * row_macs(vision, vision.patches if patches is None else patches, patch_rows)
    if not instruction:
        return macs
    for layer, left in stages:
        macs += instruction * tokens * text.heads * text.head_dim
        if layer == 0:  # keys of the whole prompt; queries, keys and values of the instruction
            keys = text.width * text.head_dim * text.kv_heads
            macs += tokens * keys + instruction * (2 * keys + text.width * text.head_dim * text.heads)
        tokens = left
    return macs


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates by phase, and bytes. See the module for what is counted."""

    vision: int
    projector: int
    select: int
    prefill: int
    lm_head: int
    decode_per_token: int
    kv_bytes: int

    @property
    def first_token(self) -> int:
        """MACs up to the first answer token."""
        return self.vision + self.projector + self.select + self.prefill + self.lm_head

    def to_dict(self) -> dict[str, Any]:
        """Phase -> {"macs", "flops"}, and ``kv_bytes``."""
        phases = {**asdict(self), "first_token": self.first_token}
        size = phases.pop("kv_bytes")
        return {name: {"macs": macs, "flops": 2 * macs} for name, macs in phases.items()} | {"kv_bytes": size}


@dataclass(frozen=True)
class Prompt:
    """An image and a question."""

    tiles: int  # of the image; more than one bring a thumbnail along
    text_tokens: int  # everything in the prompt that is not a visual token

    @property
    def encoded(self) -> int:
        """Rows that the vision tower encodes."""
        return self.tiles + (self.tiles > 1)


@dataclass(frozen=True)
class Encoding:
    """What of an image is encoded.

    Attributes:
        tiles: so many of its tiles, besides the thumbnail; None: all.
        layer: the tower's, before which patches are dropped; None: nowhere.
        margin: so many times a tile's share of the kept tokens pass that layer.
        background: whether tiles that are left out get the features of one that is encoded, so that none of their
            tokens is missing.
        floor: at least this share of an encoded tile passes that layer.
    """

    tiles: int | None = None
    layer: int | None = None
    margin: float = 1.25
    background: bool = False
    floor: float = 0.0

    @classmethod
    def of(cls, settings: EncoderSettings, tiles: int, layer: int | None) -> Encoding:
        """What a pruner encodes, where it chooses so many tiles and drops patches before this layer of the tower."""
        background = settings.left_out == "background"
        return cls(tiles, layer, settings.vision_margin, background, settings.vision_floor)

    def rows(self, prompt: Prompt) -> int:
        """How many tiles are encoded, with the thumbnail."""
        return prompt.encoded if self.tiles is None or prompt.tiles == 1 else min(self.tiles, prompt.tiles) + 1

    def present(self, prompt: Prompt) -> int:
        """How many tiles have features, with the thumbnail."""
        return prompt.encoded if self.background else self.rows(prompt)

    def groups(self, shape: ModelShape, prompt: Prompt, keep_ratio: float) -> int:
        """How many token groups of each encoded tile pass the tower."""
        if self.layer is None:
            return shape.tile_tokens
        kept = kept_tokens(prompt.encoded * shape.tile_tokens, keep_ratio)
        present = self.present(prompt) * shape.tile_tokens
        return passing(shape.tile_tokens, kept, present, self.margin, self.floor)


WHOLE = Encoding()


def unpruned_cost(shape: ModelShape, prompt: Prompt, itemsize: int = 2) -> Cost:
    """The untouched model."""
    return pruned_cost(shape, prompt, 1, 0, itemsize, instruction=0, patch_rows=0)


def pruned_cost(
    shape: ModelShape,
    prompt: Prompt,
    keep_ratio: float,
    layer: int,
    itemsize: int = 2,
    instruction: int | None = None,
    patch_rows: int = 1,
    encoding: Encoding = WHOLE,
    stages: Sequence[tuple[int, int]] | None = None,
) -> Cost:
    """The model with K = max(1, round(keep_ratio * visual tokens)) visual tokens from layer ``layer`` on.

    Args:
        instruction: tokens whose attention is read; None: all text tokens. See ``select_macs``.
        patch_rows: see ``select_macs``.
        encoding: what is encoded. Tokens that are not are dropped before the decoder.
        stages: (layer, visual tokens from there on) of each cut, where there is more than one; the last leaves K.

    Raises:
        SettingError: where keep_ratio is not in (0, 1], or a layer is not one of the decoder's or of the tower's.
    """
    if not 0 < keep_ratio <= 1:
        raise SettingError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
    for each in (layer, *(each for each, _ in stages or ())):
        if not 0 <= each < shape.text.layers:
            raise SettingError(f"layer must be in 0..{shape.text.layers - 1}, got {each}")
    if encoding.layer is not None and not 1 <= encoding.layer < shape.vision.layers:
        raise SettingError(f"vision_layer must be in 1..{shape.vision.layers - 1}, got {encoding.layer}")
    text, vision, visual = shape.text, shape.vision, prompt.encoded * shape.tile_tokens
    encoded, groups = encoding.rows(prompt), encoding.groups(shape, prompt, keep_ratio)
    patches = groups * vision.patches // shape.tile_tokens
    there = encoding.present(prompt) * groups
    before = there + prompt.text_tokens
    stages = stages or [(layer, kept_tokens(visual, keep_ratio))]
    stages = [(layer, min(left, there) + prompt.text_tokens) for layer, left in stages]
    after = stages[-1][1]
    rows = prompt.text_tokens if instruction is None else instruction
    cut = encoding.layer if groups < shape.tile_tokens else None
    return Cost(
        vision=encoded * vision_macs(vision, patches, cut or 0),
        projector=encoding.present(prompt) * projector_macs(shape),
        select=select_macs(shape, encoded, before, stages, rows, patch_rows, patches)
        + (0 if cut is None else encoded * row_macs(vision, vision.patches)),
        prefill=prefill_macs(text, before, stages),
        lm_head=head_macs(text),
        decode_per_token=decode_macs(text, after + 1),
        kv_bytes=kv_bytes(text, after, itemsize),
    )


def compared_costs(
    shape: ModelShape,
    prompt: Prompt,
    keep_ratio: float,
    layer: int,
    itemsize: int,
    encoding: Encoding = WHOLE,
    first_ratio: float = 0.0,
    second_layer: int | None = None,
) -> dict[str, Any]:
    """``pruned_cost`` and ``unpruned_cost`` with their inputs: the JSON object of ``ptprune cost``, see
    docs/command-line.md.

    Args:
        first_ratio, second_layer: of PTP, which cuts twice where ``keep_ratio`` is below the first.

    Raises:
        SettingError: as ``pruned_cost``, and on a second layer that is not behind ``layer``.
    """
    visual = prompt.encoded * shape.tile_tokens
    if second_layer is not None and second_layer <= layer:
        raise SettingError(f"second_layer must be over layer, which is {layer}, got {second_layer}")
    second = halfway(layer, shape.text.layers) if second_layer is None else second_layer
    stages = None
    if keep_ratio < first_ratio and second > layer:
        stages = [(layer, kept_tokens(visual, first_ratio)), (second, kept_tokens(visual, keep_ratio))]
    pruned = pruned_cost(shape, prompt, keep_ratio, layer, itemsize, encoding=encoding, stages=stages)
    rows, groups = encoding.rows(prompt), encoding.groups(shape, prompt, keep_ratio)
    there = encoding.present(prompt) * groups
    kept = min(kept_tokens(visual, keep_ratio), there)
    between = None if stages is None else min(stages[0][1], there)
    return {
        "model": shape.name,
        "tiles": prompt.tiles,
        "thumbnail": prompt.encoded > prompt.tiles,
        "text_tokens": prompt.text_tokens,
        "keep_ratio": keep_ratio,
        "layer": layer,
        "second_layer": None if stages is None else second,
        "encoded_tiles": {"before": prompt.encoded, "after": rows},
        "encoded_tokens": {"before": visual, "after": rows * groups},
        "visual_tokens": {"before": visual, "between": between, "after": kept},
        "sequence_length": {"before": visual + prompt.text_tokens, "after": kept + prompt.text_tokens},
        "unpruned": unpruned_cost(shape, prompt, itemsize).to_dict(),
        "pruned": pruned.to_dict(),
    }


def kept_tokens(visual: int, keep_ratio: float) -> int:
    """K of an image with ``visual`` tokens."""
    return min(visual, max(1, round(keep_ratio * visual)))
