"""How pruning enters a transformers model: hooks, attention rows, cache. Knows families by their interface only."""

from ptprune.attach.attachment import Attachment

__all__ = ["Attachment"]
