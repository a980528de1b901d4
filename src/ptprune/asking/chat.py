"""Turns conversations about pictures into model inputs, and refuses those that could not be answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from PIL.Image import Image

from ptprune.bounds import MAX_QUESTION
from ptprune.errors import SettingError, first_line
from ptprune.templates import render_chats, require_template
from ptprune.text import is_text

#: Turns of a chat, ``{"role": ..., "content": [{"type": "image"}, {"type": "text", "text": ...}]}``.
Conversation: TypeAlias = Sequence[Mapping[str, Any]]

LARGER = 4  # times the pixels of a vision tower's own picture that a tile may have


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
        SettingError: where the chat template or the processor's settings cannot be used.
    """
    texts = render_chats(processor, conversations)
    start = processor.tokenizer.bos_token
    # a template that writes the first token itself must not get a second one
    text_options = {"add_special_tokens": False} if start and texts[0].startswith(start) else {}
    if len(texts) > 1:
        text_options["padding"] = True
    shown = {"images": [list(row) for row in pictures], "images_kwargs": dict(image_options or {})}
    with _of_the_checkpoint():
        return processor(text=texts, return_tensors="pt", text_kwargs=text_options, **(shown if any(pictures) else {}))


@contextmanager
def _of_the_checkpoint() -> Iterator[None]:
    """Run its processor: settings and template are the checkpoint's, and lead to errors of all kinds.

    Raises SettingError for each.
    """
    try:
        yield
    except Exception as error:
        told = f"its processor cannot prepare the prompt ({type(error).__name__}: {first_line(error)})"
        raise SettingError(f"model: {told}; give a checkpoint whose files belong together") from error


def make_prompt(model: Any, processor: Any, images: list[Image], question: str, image_options: dict[str, Any]) -> Any:
    """``chat_inputs`` of one turn that shows the pictures and asks the question, which ``check_text`` may refuse."""
    check_text(model, processor, question)
    return chat_inputs(processor, [ask_about(len(images), question)], [images], image_options)


def check_text(model: Any, processor: Any, text: str) -> None:
    """Raises SettingError where a text is none or too long, holds what stands for a picture or what a model takes for a
    turn of the chat, or the checkpoint has no chat template."""
    if not is_text(text):
        raise SettingError("question: not text, it holds bytes that are not UTF-8; give it in UTF-8")
    if len(text) > MAX_QUESTION:
        raise SettingError(f"question: {len(text)} characters; give at most {MAX_QUESTION}")
    tokenizer = processor.tokenizer
    ids = [getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")]
    placeholders = tokenizer.convert_ids_to_tokens([number for number in ids if number is not None])
    for token in (*processor.all_special_multimodal_tokens, *placeholders):  # in a prompt as written and as tokens
        if token and token in text:
            raise SettingError(f"question: {token!r} stands for a picture; leave it out, pictures are put in front")
    control = control_tokens(tokenizer)
    # in tokens too: what stands for them before they are compared may be written otherwise
    with _of_the_checkpoint():
        read = control.keys() & set(tokenizer(text, add_special_tokens=False)["input_ids"])
    for token in (*(control[number] for number in read), *(token for token in control.values() if token in text)):
        raise SettingError(f"question: {token!r} would act on the chat, it is no text to this model; leave it out")
    require_template(processor)


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that a tokenizer takes for themselves wherever they are written, by id: ends, roles, starts of turns.
    The one for what is unknown is left out."""
    named = {tokenizer.convert_tokens_to_ids(token): token for token in tokenizer.all_special_tokens}
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {number: token for number, token in {**added, **named}.items() if token and number != tokenizer.unk_token_id}


def check_length(model: Any, inputs: Any, max_new_tokens: int) -> None:
    """Refuse a prompt that does not fit the model's positions: it would answer, and wrongly. Also one whose tiles are
    far larger than its vision tower's, which would take for ever.

    Raises SettingError, naming both lengths or sizes.
    """
    pixels = inputs.get("pixel_values")
    stated = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    sides = stated if isinstance(stated, list | tuple) else (stated, stated)
    if stated is not None and pixels is not None and pixels.ndim > 3:
        height, width = pixels.shape[-2:]
        if height * width > LARGER * sides[0] * sides[-1]:
            told = f"its tiles have {height} x {width} pixels, and its vision tower takes {sides[0]} x {sides[-1]}"
            raise SettingError(f"model: {told}; give a checkpoint whose files belong together")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length + max_new_tokens > limit:
        raise SettingError(
            f"max_new_tokens {max_new_tokens}: the prompt has {length} tokens, and the model takes {limit} "
            "in all; give fewer or smaller pictures, fewer tiles or a shorter question"
        )
