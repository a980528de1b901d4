"""Token level: which tokens of a tile stand out (PTP, bottom-up)."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

TOKEN_SCORES = ScoreRegistry("token")


@TOKEN_SCORES.register("cls-attention", needs=("cls_attention",))
def cls_attention(image: ImageEvidence) -> Tensor:
    """[CLS] attention at the ViT layer whose features the model uses, pooled to LLM tokens (the paper's).

    Attention received, averaged over all patches of the tile, stands in where the encoder has no [CLS] [ours].
    """
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


# Attention weights held at a time: 16 MB in float32, however many patches a picture has; more is slower on CPUs.
WEIGHTS_AT_A_TIME = 2**22


@torch.no_grad()
def received_attention(query: Tensor, key: Tensor, scaling: float, valid: Tensor | None = None) -> Tensor:
    """Attention that each patch of a tile receives: the mean over heads and queries of ``softmax(q K^T * scaling)``.

    The map is never held whole, only blocks of its rows.

    Args:
        query, key: [tiles, heads, patches, head_dim].
        valid: BoolTensor [tiles, patches], False on padding, which neither pays nor receives.

    Returns:
        FloatTensor [tiles, patches]; rows sum to 1.
    """
    return torch.stack(
        [
            _received(q, k, scaling, None if valid is None else valid[tile])
            for tile, (q, k) in enumerate(zip(query, key, strict=True))
        ]
    )


def _received(query: Tensor, key: Tensor, scaling: float, valid: Tensor | None) -> Tensor:
    heads, patches, _ = query.shape
    key_transposed = key.float().transpose(-1, -2)
    total = torch.zeros(patches, device=query.device)
    queries = query if valid is None else query[:, valid]
    for block in queries.split(max(1, WEIGHTS_AT_A_TIME // (heads * patches)), dim=1):
        logits = (block.float() * scaling) @ key_transposed
        if valid is not None:
            logits.masked_fill_(~valid, -torch.inf)
        total += torch.softmax(logits, dim=-1).sum(dim=(0, 1))
    return total / (heads * queries.shape[1])
