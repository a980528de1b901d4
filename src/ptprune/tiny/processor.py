"""InternVL's processor without its video part, which is what needs torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import InternVLProcessor


class ImageOnlyInternVLProcessor(InternVLProcessor):
    """An ``InternVLProcessor`` for pictures and text only. Same inputs, same outputs, no torchvision.

    A processor's parts are the parameters of its constructor: this one has no ``video_processor``. It loads any
    InternVL checkpoint (``ImageOnlyInternVLProcessor.from_pretrained(DIR)``) and uses the PIL image processor where
    torchvision is missing.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template, **kwargs)


def load_processor(directory: str | Path) -> InternVLProcessor:
    """The processor of an InternVL checkpoint, with or without torchvision installed."""
    return ImageOnlyInternVLProcessor.from_pretrained(directory)
