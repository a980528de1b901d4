"""Token level: which tokens of a tile stand out (PTP, bottom-up)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


@TOKEN_SCORES.register("received-attention", needs=("received_attention",))
def received(image: ImageEvidence) -> Tensor:
    """Attention that a token receives from all patches of its tile: choose it where [CLS] is blind to detail.

    The same as "cls-attention" where the encoder has no [CLS].
    """
    return image.require("received_attention")


@TOKEN_SCORES.register("activation", needs=("token_features",))
def activation(image: ImageEvidence) -> Tensor:
    """Norm of the encoder's feature: the cheapest score, it needs no attention at all."""
    return image.require("token_features").float().norm(dim=-1)


@TOKEN_SCORES.register("gradient", needs=("token_features",))
def gradient(image: ImageEvidence) -> Tensor:
    """Gradient times input of the tile-to-thumbnail similarity: tokens that make a tile look like the whole picture.

    With ``z_t`` the mean of a tile's features ``x_j`` and ``z_g`` that of the thumbnail, the derivative of
    ``cos(z_t, z_g)`` along ``x_j`` is ``x_j . (u_g - cos u_t) / (|z_t| N_t)`` with unit vectors u: nothing has to be
    run backwards [ours]. The thumbnail is compared with the mean over all tiles, windows with the mean over the
    picture. A single tile has nothing to be compared with: there the derivative is that of ``|z_t|``.
    """
    features, layout = image.require("token_features").float(), image.layout
    region_of, thumbnail = layout.region_of.to(features.device), layout.thumbnail
    scores = torch.empty(len(features), device=features.device)
    for region in range(len(layout.regions)):
        mine = region_of == region
        others = torch.ones_like(mine) if thumbnail is None else region_of == thumbnail
        if thumbnail == region:
            others = ~mine
        own, other = features[mine].mean(dim=0), features[others].mean(dim=0)
        own_unit, other_unit = F.normalize(own, dim=0), F.normalize(other, dim=0)
        slope = own_unit
        if len(layout.regions) > 1:
            slope = (other_unit - own_unit.dot(other_unit) * own_unit) / own.norm().clamp(min=1e-12)
        scores[mine] = features[mine] @ slope / mine.sum()
    return scores


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
