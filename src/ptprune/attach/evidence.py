"""From an encoded image and its place to what a method may look at."""

from __future__ import annotations

from torch import Tensor

from ptprune.families.encoded import EncodedImage
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence


def evidence_of(layout: ImageLayout, image: EncodedImage, **language: Tensor) -> ImageEvidence:
    """The evidence of one image, on the device of its layout.

    Args:
        language: what the language model's side adds, by name in ``ImageEvidence``.
    """
    device = layout.tokens.device
    features, whole = image.features, image.whole
    if features is not None:
        features = features.to(device)
        whole = features[layout.thumbnail] if layout.thumbnail is not None else whole
    prunable = image.region_of.to(device) >= 0
    tokens = {name: values.to(device)[prunable] for name, values in image.tokens.items()}
    tokens |= {name: tokens[name][:, 0] for name in tokens.keys() & {"cls_attention", "received_attention"}}
    return ImageEvidence(
        layout,
        region_features=features,
        image_feature=None if whole is None else whole.to(device),
        pixels=image.preview,
        **tokens,
        **language,
    )
