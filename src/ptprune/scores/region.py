"""Region level: how salient each tile is (method: PTP, bottom-up; measured as in HERO, arXiv 2509.13067)."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

REGION_SCORES = ScoreRegistry("region")


@REGION_SCORES.register("cls-similarity", needs=("region_features", "image_feature"))
def cls_similarity(image: ImageEvidence) -> Tensor:
    """Cosine of each tile's [CLS] with the thumbnail's: tiles that carry what the whole picture shows.

    Mean patch features stand in for [CLS] where the encoder has none, and those of the whole image for a thumbnail
    [ours]. Returns FloatTensor [num_regions]; the thumbnail's own entry is 1.
    """
    features, whole = image.require("region_features").float(), image.require("image_feature").float()
    return torch.cosine_similarity(features, whole[None], dim=-1)


@REGION_SCORES.register("uniform")
def uniform(image: ImageEvidence) -> Tensor:
    """Every tile alike: budgets in proportion to the tiles' sizes, for comparison."""
    return torch.ones(len(image.layout.regions), device=image.device)


def region_weights(saliency: Tensor, temperature: float) -> Tensor:
    """Softmax of the standardised saliency over an image's tiles: ``softmax(z / temperature)``.

    Encoders differ in the range of their similarities (.3 to .9 on one, .85 to .95 on another), so saliency is
    standardised over the tiles, which gives the temperature one meaning everywhere [ours]. Tiles whose saliencies
    differ by less than float32 noise count as equal.

    Args:
        saliency: FloatTensor [num_tiles].
        temperature: larger is nearer to uniform.

    Raises:
        ValueError: on values that are not finite.
    """
    if not bool(torch.isfinite(saliency).all()):
        raise ValueError("the region saliencies hold NaN or infinite values: the vision encoder overflowed")
    centred = saliency.double() - saliency.double().mean()
    spread = centred.square().mean().sqrt()
    if spread < 1e-6:
        return torch.full_like(centred, 1 / len(centred))
    return torch.softmax(centred / spread / temperature, dim=0)
