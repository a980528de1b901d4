"""The layer of the vision encoder whose features a model uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptprune.errors import UnsupportedModel
from ptprune.families.base import Model


def feature_layer(model: Model, call: Mapping[str, Any]) -> int:
    """The ``vision_feature_layer`` of a ``get_image_features`` call.

    Raises:
        UnsupportedModel: if the model concatenates several layers.
    """
    layer = call.get("vision_feature_layer")
    layer = model.config.vision_feature_layer if layer is None else layer
    if not isinstance(layer, int):
        raise UnsupportedModel(f"vision_feature_layer must be one layer, got {layer}")
    return layer


def layer_behind(layers: Sequence[Any], feature_layer: int) -> Any:
    """The encoder layer whose output is ``hidden_states[feature_layer]``; ``hidden_states[0]`` is the embedding."""
    return layers[feature_layer if feature_layer < 0 else max(feature_layer - 1, 0)]
