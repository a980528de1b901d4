"""Region level: how salient each tile is (method: PTP, bottom-up; measured as in HERO, arXiv 2509.13067)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptprune.errors import Refused
from ptprune.layout import Place
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

REGION_SCORES = ScoreRegistry("region")


@REGION_SCORES.register("cls-similarity", needs=("region_features", "image_feature"))
def cls_similarity(image: ImageEvidence) -> Tensor:
    """Cosine of each tile's [CLS] with the thumbnail's: prefers tiles that carry what the whole picture shows.

    Mean patch features replace [CLS] if the encoder has none, and those of the whole image replace a missing thumbnail
    [ours]. Returns FloatTensor [num_regions]; the thumbnail's own entry is 1.
    """
    features, whole = image.require("region_features").float(), image.require("image_feature").float()
    # torch.cosine_similarity takes three times as many operations, for every image of a batch
    sizes = torch.linalg.vector_norm(features, dim=-1) * torch.linalg.vector_norm(whole)
    return features @ whole / sizes.clamp_(min=1e-8)


@REGION_SCORES.register("attention-mass", needs=("encoder_attention",))
def attention_mass(image: ImageEvidence) -> Tensor:
    """The thumbnail's [CLS] attention that falls on a tile's area: prefers tiles that the encoder itself looks at.

    HiRED (arXiv 2408.10945) and GlobalCom2 (arXiv 2501.05179) do the same; here it is a mean over the area, because
    budgets grow with a tile's size anyway [ours]. Without a thumbnail, it is the mean over the region's own tokens.
    Choose it if [CLS] features are alike in all tiles.
    """
    attention, thumbnail = image.require("encoder_attention").float(), image.layout.thumbnail
    region_of = image.layout.region_of.to(attention.device)
    if thumbnail is None:
        return torch.stack([attention[region_of == region].mean() for region in range(len(image.layout.regions))])
    return mean_inside(
        attention[region_of == thumbnail].view(image.layout.regions[thumbnail].grid), image.layout.places()
    )


@REGION_SCORES.register("image-saliency", needs=("pixels",))
def image_saliency(image: ImageEvidence) -> Tensor:
    """How much a tile's pixels stand out by colour and contrast: ignores the encoder.

    The detector is OpenCV's fine-grained static saliency (Montabone and Soto 2010) on a small copy of the picture.
    Needs ``pip install opencv-contrib-python-headless``. Choose it to compare, or for pictures of few objects on plain
    backgrounds.

    Raises:
        ImportError: if OpenCV's contributed modules are not installed.
    """
    try:
        import cv2

        toolbox: Any = cv2.saliency  # its type stubs know half of it
        detector = toolbox.StaticSaliencyFineGrained_create()
    except (ImportError, AttributeError):
        raise ImportError("region='image-saliency' needs: pip install opencv-contrib-python-headless") from None
    pixels = image.require("pixels").float().cpu()
    low, high = pixels.amin(), pixels.amax()
    picture = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).byte().permute(1, 2, 0).contiguous().numpy()
    found, saliency = detector.computeSaliency(picture)
    return mean_inside(torch.from_numpy(saliency).float(), image.layout.places()).to(image.device)


@REGION_SCORES.register("uniform")
def uniform(image: ImageEvidence) -> Tensor:
    """The same for every tile: gives budgets in proportion to the tiles' sizes, for comparison."""
    return torch.ones(len(image.layout.regions), device=image.device)


def mean_inside(picture: Tensor, places: Sequence[Place]) -> Tensor:
    """Mean of a map [rows, columns] of the whole picture over each region's area: FloatTensor [num_regions]."""
    down, across = (torch.from_numpy(weights).to(picture) for weights in inside(picture.shape, places))
    return ((down @ picture) * across).sum(dim=1)


def inside(shape: Sequence[int], places: Sequence[Place]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the rows and of the columns of a map [rows, columns] of the whole picture, for the mean over each
    region's area: float64 arrays [num_regions, rows] and [num_regions, columns], each row sums to 1."""
    boxes = np.array([place.box for place in places])
    return _overlap(shape[0], boxes[:, 1], boxes[:, 3]), _overlap(shape[1], boxes[:, 0], boxes[:, 2])


def _overlap(cells: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """How much of each of ``cells`` equal cells of 0..1 lies between ``start`` and ``stop`` [n]: [n, cells], sums 1."""
    edges = np.linspace(0, 1, cells + 1)
    share = np.minimum(edges[1:], stop[:, None]) - np.maximum(edges[:-1], start[:, None])
    share = share.clip(min=0)
    return share / share.sum(axis=1, keepdims=True)


def region_weights(saliency: Sequence[float], temperature: float) -> list[float]:
    """Softmax of the standardised saliency over an image's tiles: ``softmax(z / temperature)``.

    Encoders differ in the range of their similarities (.3 to .9 on one, .85 to .95 on another). Saliency is therefore
    standardised over the tiles, so that a temperature means the same everywhere [ours]. Saliencies that differ by less
    than float32 noise count as equal.

    Args:
        saliency: one number a tile, on the host: a device would launch a dozen kernels for a dozen numbers.
        temperature: a larger one gives more even weights.

    Raises:
        Refused: on values that are not finite.
    """
    values = np.asarray(saliency, dtype=np.float64)
    if not np.isfinite(values).all():
        raise Refused("the region saliencies hold NaN or infinite values: the vision encoder overflowed")
    centred = values - values.mean()
    spread = np.sqrt(np.square(centred).mean())
    if spread < 1e-6:
        return [1 / len(values)] * len(values)
    scaled = centred / spread / temperature
    weights = np.exp(scaled - scaled.max())
    return (weights / weights.sum()).tolist()
