"""A checkpoint directory of every family in the zoo, as its users have it."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from ptprune.checkpoints.image_only import image_only
from tests.zoo import Specimen

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACEHOLDER{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} answer"
)


def savable(specimen: Specimen) -> Any:
    """The zoo's processor with a chat template, of a class that saves all of its settings."""
    zoo = specimen.make_processor()
    stock = next(cls for cls in type(zoo).__mro__ if cls.__module__.startswith("transformers.models"))
    if image_only(stock) is stock:
        processor = zoo
    else:
        parts = stock.get_attributes()
        names = [name for name in signature(stock.__init__).parameters if name not in parts and hasattr(zoo, name)]
        settings = {name: getattr(zoo, name) for name in names}
        processor = image_only(stock)(*(getattr(zoo, part, None) for part in parts), **settings)
    processor.chat_template = TEMPLATE.replace("PLACEHOLDER", specimen.placeholder)
    return processor


def save(specimen: Specimen, directory: Path, **text: Any) -> Path:
    """Weights, configurations and processor.

    Args:
        text: overrides of the language model's configuration.
    """
    specimen.build(**text).save_pretrained(directory)
    savable(specimen).save_pretrained(directory)
    return directory
