"""A request of lmms-eval in our words: the conversation, its pictures, and how the answer is to be written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.protocol import ChatMessages
from PIL import Image

from ptprune.asking.chat import Conversation
from ptprune.errors import UserError
from ptprune.pictures import open_picture, to_rgb

LONGEST = 1024  # tokens of an answer where the task does not say; what lmms-eval's own models take
FEWSHOT_DELIMITER = "\n\n"
"""lmms-eval writes this stop string into every task that names none. It belongs to base models that are shown examples;
a chat model ends its answer by itself, and would lose all but the first paragraph."""
OTHER_MODELS = ("image_aspect_ratio",)  # options that tasks set for one model's own image code


def conversation_of(request: Instance, documents: Any) -> tuple[Conversation, list[Image.Image]]:
    """What a request asks, and the pictures it shows, in RGB.

    Args:
        documents: of the request's task, by split and number.

    Raises:
        UserError: where it shows a video or plays a sound.
    """
    _, messages_of, _, number, task, split = request.args
    messages = ChatMessages(messages=messages_of(documents[task][split][number])).messages
    pictures: list[Image.Image] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if part.type == "text":
                content.append({"type": "text", "text": part.text})
            elif part.type == "image":
                content.append({"type": "image"})
                pictures.append(_picture(part.url))
            else:
                raise UserError(f"{task}, question {number}: shows {part.type}; model ptprune reads pictures only")
        turns.append({"role": message.role, "content": content})
    return turns, pictures


def _picture(given: Any) -> Image.Image:
    return open_picture(Path(given)) if isinstance(given, str) else to_rgb(given)


def generation_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options of ``generate()``, and the texts at which an answer is cut.

    Args:
        given: ``generation_kwargs`` of a task. What is not known here goes to ``generate()``, which refuses what it
            does not know either.
    """
    options = {name: value for name, value in given.items() if name not in OTHER_MODELS}
    until = options.pop("until", None) or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop and stop != FEWSHOT_DELIMITER]
    temperature = options.pop("temperature", None) or 0
    top_p = options.pop("top_p", None)
    sample = bool(options.pop("do_sample", temperature > 0)) and temperature > 0
    options = {"max_new_tokens": LONGEST, "num_beams": 1, **options, "do_sample": sample}
    if sample:
        options |= {"temperature": temperature, "top_p": 1.0 if top_p is None else top_p}
    return options, stops


def cut(text: str, stops: list[str]) -> str:
    """The text before the first stop string."""
    return min((text.split(stop)[0] for stop in stops), key=len, default=text)
