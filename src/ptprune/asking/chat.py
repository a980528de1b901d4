"""Turns conversations about pictures into model inputs, and refuses those that could not be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from PIL.Image import Image

from ptprune.errors import SettingError
from ptprune.templates import render_chats, require_template

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

    Raises:
        SettingError: where the chat template cannot be used.
    """
    texts = render_chats(processor, conversations)
    start = processor.tokenizer.bos_token
    # a template that writes the first token itself must not get a second one
    text_options = {"add_special_tokens": False} if start and texts[0].startswith(start) else {}
    if len(texts) > 1:
        text_options["padding"] = True
    shown = {"images": [list(row) for row in pictures], "images_kwargs": dict(image_options or {})}
    return processor(text=texts, return_tensors="pt", text_kwargs=text_options, **(shown if any(pictures) else {}))


def make_prompt(model: Any, processor: Any, images: list[Image], question: str, image_options: dict[str, Any]) -> Any:
    """``chat_inputs`` of one turn that shows the pictures and asks the question, which ``check_text`` may refuse."""
    check_text(model, processor, question)
    return chat_inputs(processor, [ask_about(len(images), question)], [images], image_options)


def check_text(model: Any, processor: Any, text: str) -> None:
    """Raises SettingError where a text holds what stands for a picture, or the checkpoint has no chat template."""
    ids = [getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")]
    placeholders = processor.tokenizer.convert_ids_to_tokens([number for number in ids if number is not None])
    for token in (*processor.all_special_multimodal_tokens, *placeholders):  # in a prompt as written and as tokens
        if token and token in text:
            raise SettingError(f"question: {token!r} stands for a picture; leave it out, pictures are put in front")
    require_template(processor)


def check_length(model: Any, inputs: Any, max_new_tokens: int) -> None:
    """Refuse a prompt that does not fit the model's positions: it would answer, and wrongly.

    Raises SettingError, naming both lengths.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length + max_new_tokens > limit:
        raise SettingError(
            f"max_new_tokens {max_new_tokens}: the prompt has {length} tokens, and the model takes {limit} "
            "in all; give fewer or smaller pictures, fewer tiles or a shorter question"
        )
