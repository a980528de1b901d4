"""The processors of all supported families, with or without torchvision."""

from ptprune.processors.image_only import image_only
from ptprune.processors.loading import find_class, load_processor

__all__ = ["find_class", "image_only", "load_processor"]
