"""The processors of all supported families, with or without torchvision."""

from ptprune.processors.chat import ask_about, chat_inputs
from ptprune.processors.image_only import image_only
from ptprune.processors.loading import find_class, load_processor

__all__ = ["ask_about", "chat_inputs", "find_class", "image_only", "load_processor"]
