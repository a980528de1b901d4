"""Applies pruning to a transformers model: hooks, attention rows, cache. Uses only the interface of families."""

from ptprune.attach.attachment import Attachment

__all__ = ["Attachment"]
