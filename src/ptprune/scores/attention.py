"""Scores patches by the queries and keys of a vision encoder's attention. The full attention map is never held."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QueriesAndKeys:
    """The inputs of an attention function.

    Attributes:
        query: [batch, heads, queries, head_dim].
        key: [batch, key_value_heads, keys, head_dim].
        mask: as the attention implementation uses it: None, [batch, keys], or [batch, 1, queries, keys], boolean or
            additive.
        lengths: of the sequences if they are packed into one for flash attention, else None.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Tensor | None
    lengths: list[int] | None


def patch_scores(qk: QueriesAndKeys, has_cls: bool, wanted: Container[str]) -> dict[str, Tensor]:
    """The wanted attention scores: name in ``ImageEvidence`` -> FloatTensor [patches of all tiles].

    Without a [CLS], both scores are the received attention.
    """
    scores = {}
    if "encoder_attention" in wanted and has_cls:
        scores["encoder_attention"] = cls_row(qk.query, qk.key, qk.scaling).flatten()
    others = {"received_attention"} | (set() if has_cls else {"encoder_attention"})
    if missing := [name for name in others if name in wanted]:
        received = _received(qk)[:, int(has_cls) :].flatten()
        scores |= dict.fromkeys(missing, received)
    return scores


def _received(qk: QueriesAndKeys) -> Tensor:
    if qk.lengths is None:
        return received_attention(qk.query, qk.key, qk.scaling, _valid(qk.mask))
    # pictures of different sizes are packed into one sequence for flash attention
    parts = zip(qk.query.split(qk.lengths, dim=2), qk.key.split(qk.lengths, dim=2), strict=True)
    return torch.cat([received_attention(q, k, qk.scaling) for q, k in parts], dim=1)


def _valid(mask: Tensor | None) -> Tensor | None:
    """BoolTensor [tiles, patches], False on padding. The mask is the same for every query, so one row is enough."""
    if mask is None or mask.ndim == 2:
        return None if mask is None else mask.bool()
    row = mask[:, 0, 0]
    return row if row.dtype == torch.bool else row == 0


@torch.no_grad()
def cls_row(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The [CLS] row of a ViT layer's attention, mean over heads: ``softmax(q_cls K^T * scaling)``, without other rows.

    Args:
        query, key: [tiles, heads, 1 + patches, head_dim], [CLS] first.

    Returns:
        FloatTensor [tiles, patches]. The softmax runs over all keys including [CLS], so rows sum to less than 1.
    """
    tiles, heads, length, width = key.shape
    # Encoders hold keys as [tiles, length, heads * width]. One product with a block-diagonal matrix of the [CLS]
    # queries reads them as they lie: no copy of the keys, and on a CPU four times as fast as a product a head.
    states = key.transpose(1, 2).reshape(tiles, length, heads * width).float()
    blocks = query.new_zeros(tiles, heads, width, heads, dtype=torch.float32)
    blocks.diagonal(dim1=1, dim2=3).copy_(query[:, :, 0].transpose(1, 2))
    logits = torch.bmm(states, blocks.view(tiles, heads * width, heads))
    return torch.softmax(logits.mul_(scaling), dim=1).mean(dim=2)[:, 1:]


# Attention weights held at a time: 16 MB in float32 for any number of patches. More is slower on CPUs.
WEIGHTS_AT_A_TIME = 2**22


@torch.no_grad()
def received_attention(query: Tensor, key: Tensor, scaling: float, valid: Tensor | None = None) -> Tensor:
    """Attention that each patch of a tile receives: the mean over heads and queries of ``softmax(q K^T * scaling)``.

    Only blocks of the map's rows are held.

    Args:
        query, key: [tiles, heads, patches, head_dim].
        valid: BoolTensor [tiles, patches], False on padding, which neither pays nor receives attention.

    Returns:
        FloatTensor [tiles, patches]; rows sum to 1.
    """
    return torch.stack(
        [
            _received_in_tile(q, k, scaling, None if valid is None else valid[tile])
            for tile, (q, k) in enumerate(zip(query, key, strict=True))
        ]
    )


def _received_in_tile(query: Tensor, key: Tensor, scaling: float, valid: Tensor | None) -> Tensor:
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
