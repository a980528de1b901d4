"""Token level: which tokens of a tile stand out (PTP, bottom-up)."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

TOKEN_SCORES = ScoreRegistry("token")

TILES_AT_A_TIME = 8


@TOKEN_SCORES.register("cls-attention", needs=("cls_attention",))
def cls_attention(image: ImageEvidence) -> Tensor:
    """[CLS] attention at the ViT layer whose features the model uses, pooled to LLM tokens (the paper's)."""
    return image.require("cls_attention")


def cls_row(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The [CLS] row of a ViT layer's attention, mean over heads: ``softmax(q_cls K^T * scaling)``.

    One row a tile is computed, never the full map.

    Args:
        query, key: [tiles, heads, 1 + patches, head_dim], [CLS] first.

    Returns:
        FloatTensor [tiles, patches]; the softmax runs over all keys, [CLS] included, so rows sum to less than 1.
    """
    rows = [
        torch.softmax(q.float() @ k.float().transpose(-1, -2) * scaling, dim=-1).mean(dim=1)[:, 0, 1:]
        # a few tiles at a time: the float32 copy of the keys must not weigh more than the ViT's own activations
        for q, k in zip(query[:, :, :1].split(TILES_AT_A_TIME), key.split(TILES_AT_A_TIME), strict=True)
    ]
    return torch.cat(rows)
