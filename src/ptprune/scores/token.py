"""Token level: which tokens of a tile stand out (PTP, bottom-up)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

TOKEN_SCORES = ScoreRegistry("token")


@TOKEN_SCORES.register("cls-attention", needs=("encoder_attention",))
def cls_attention(image: ImageEvidence) -> Tensor:
    """[CLS] attention at the ViT layer whose features the model uses, pooled to LLM tokens (the paper's).

    If the encoder has no [CLS], the mean attention from all patches of the tile replaces it [ours].
    """
    return image.require("encoder_attention")


@TOKEN_SCORES.register("received-attention", needs=("received_attention",))
def received(image: ImageEvidence) -> Tensor:
    """Attention that a token receives from all patches of its tile: choose it if [CLS] is blind to detail.

    Equal to "cls-attention" if the encoder has no [CLS].
    """
    return image.require("received_attention")


@TOKEN_SCORES.register("activation", needs=("token_features",))
def activation(image: ImageEvidence) -> Tensor:
    """Norm of the encoder's feature: the cheapest score, because it needs no attention at all."""
    return image.require("token_features").float().norm(dim=-1)


@TOKEN_SCORES.register("gradient", needs=("token_features",))
def gradient(image: ImageEvidence) -> Tensor:
    """Gradient times input of tile-thumbnail similarity: prefers tokens that make a tile look like the whole picture.

    Let ``z_t`` be the mean of a tile's features ``x_j`` and ``z_g`` that of the thumbnail. The derivative of
    ``cos(z_t, z_g)`` along ``x_j`` is ``x_j . (u_g - cos u_t) / (|z_t| N_t)`` with unit vectors u, so no backward pass
    is needed [ours]. The thumbnail is compared with the mean over all tiles, windows with the mean over the picture. A
    single tile has nothing to compare with, so it uses the derivative of ``|z_t|``.
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
