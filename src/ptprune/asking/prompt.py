"""A prompt about pictures: made by the checkpoint's own processor, and refused where it could not be answered."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ptprune.asking.chat import ask_about, chat_inputs
from ptprune.errors import SettingError


def make_prompt(
    model: Any, processor: Any, images: list[Image.Image], question: str, image_options: dict[str, Any]
) -> Any:
    """Model inputs of a chat turn that shows the pictures and asks the question.

    Args:
        image_options: of the image processor, instead of its own.

    Raises:
        SettingError: where the question holds the text that stands for a picture, or the checkpoint has no chat
            template.
    """
    check_text(model, processor, question)
    return chat_inputs(processor, [ask_about(len(images), question)], [images], image_options)


def check_text(model: Any, processor: Any, text: str) -> None:
    """Refuse what cannot become part of a prompt.

    Raises:
        SettingError: where the text holds what stands for a picture, or the checkpoint has no chat template.
    """
    for token in _placeholders(model, processor):
        if token in text:
            raise SettingError(f"question: {token!r} stands for a picture; leave it out, pictures are put in front")
    if not (processor.chat_template or getattr(processor.tokenizer, "chat_template", None)):
        raise SettingError("model: the checkpoint has no chat template; give an instruction-tuned one")


def _placeholders(model: Any, processor: Any) -> list[str]:
    """What stands for pictures and videos, in a prompt as written and as the model gets it."""
    ids = [getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")]
    tokens = processor.tokenizer.convert_ids_to_tokens([number for number in ids if number is not None])
    return [token for token in dict.fromkeys([*processor.all_special_multimodal_tokens, *tokens]) if token]


def check_length(model: Any, inputs: Any, max_new_tokens: int) -> None:
    """Refuse a prompt that does not fit the model's positions: it would answer, and wrongly.

    Raises:
        SettingError: naming both lengths.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length + max_new_tokens > limit:
        raise SettingError(
            f"max_new_tokens {max_new_tokens}: the prompt has {length} tokens, and the model takes {limit} "
            "in all; give fewer or smaller pictures, fewer tiles or a shorter question"
        )
