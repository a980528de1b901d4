"""Conversations with pictures become model inputs: one prompt, or a batch of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from PIL.Image import Image

#: Turns of a chat, ``{"role": ..., "content": [{"type": "image"}, {"type": "text", "text": ...}]}``.
Conversation: TypeAlias = Sequence[Mapping[str, Any]]


def ask_about(pictures: int, question: str) -> Conversation:
    """The conversation of one user turn that shows so many pictures and asks about them."""
    content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def chat_inputs(
    processor: Any,
    conversations: Sequence[Conversation],
    pictures: Sequence[Sequence[Image]],
    image_options: Mapping[str, Any] | None = None,
) -> Any:
    """Inputs of ``model.generate()``, one row a conversation, padded where there are several.

    Args:
        pictures: of each conversation, in the order in which it shows them; either all have some or none has.
        image_options: of the image processor, instead of its own.
    """
    texts = [
        processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        for conversation in conversations
    ]
    start = processor.tokenizer.bos_token
    # a template that writes the first token itself must not get a second one
    text_options = {"add_special_tokens": False} if start and texts[0].startswith(start) else {}
    if len(texts) > 1:
        text_options["padding"] = True
    shown = {"images": [list(row) for row in pictures], "images_kwargs": dict(image_options or {})}
    return processor(text=texts, return_tensors="pt", text_kwargs=text_options, **(shown if any(pictures) else {}))
