"""Entry point ``lmms_eval.models``: registers ``--model ptprune``."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """``--model ptprune``: any supported checkpoint, any method."""
    return ModelManifest("ptprune", chat_class_path="ptprune.lmms.model.LmmsModel")
