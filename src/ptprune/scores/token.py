"""Token level: which tokens of a tile stand out (PTP, bottom-up)."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

TOKEN_SCORES = ScoreRegistry("token")


@TOKEN_SCORES.register("cls-attention", needs=("cls_attention",))
def cls_attention(image: ImageEvidence) -> Tensor:
    """[CLS] attention at the ViT layer whose features the model uses, pooled to LLM tokens (the paper's)."""
    return image.require("cls_attention")


@torch.no_grad()
def cls_row(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The [CLS] row of a ViT layer's attention, mean over heads: ``softmax(q_cls K^T * scaling)``.

    One row a tile is computed, never the full map.

    Args:
        query, key: [tiles, heads, 1 + patches, head_dim], [CLS] first.

    Returns:
        FloatTensor [tiles, patches]; the softmax runs over all keys, [CLS] included, so rows sum to less than 1.
    """
    # tile by tile: a float32 copy of all keys would weigh more than the ViT's own activations, and on a CPU a batched
    # product of one row with strided keys takes ten times as long
    logits = torch.stack([q.float() @ k.float().transpose(-1, -2) for q, k in zip(query[:, :, :1], key, strict=True)])
    return torch.softmax(logits * scaling, dim=-1).mean(dim=1)[:, 0, 1:]
