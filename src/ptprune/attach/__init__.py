"""How pruning enters a transformers model: hooks, attention rows, cache. Knows families only through their interface."""

from ptprune.attach.attachment import Attachment

__all__ = ["Attachment"]
