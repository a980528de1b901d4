"""A loaded model as lmms-eval sees one: requests in, answers out, in batches, with or without pruning."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image

from ptprune.asking.chat import Conversation, chat_inputs, check_text
from ptprune.asking.loaded import LoadedModel
from ptprune.errors import PtpruneError, UserError
from ptprune.pictures import open_picture, to_rgb
from ptprune.pruner import TokenPruner

LONGEST = 1024  # tokens of an answer where the task does not say; what lmms-eval's own models take
FEWSHOT_DELIMITER = "\n\n"
"""lmms-eval writes this stop string into every task that names none. It belongs to base models that are shown examples;
a chat model ends its answer by itself, and would lose all but the first paragraph."""
OTHER_MODELS = ("image_aspect_ratio",)  # options that tasks set for one model's own image code


def conversation_of(request: Instance, documents: Any) -> tuple[Conversation, list[Image.Image]]:
    """The conversation of a request, and the pictures that it shows, in RGB.

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
                given: Any = part.url
                pictures.append(open_picture(Path(given)) if isinstance(given, str) else to_rgb(given))
            else:
                raise UserError(f"{task}, question {number}: shows {part.type}; model ptprune reads pictures only")
        turns.append({"role": message.role, "content": content})
    return turns, pictures


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


PADDING = "__padding_only__"  # lmms-eval's mark on requests that only make all processes' shares equally long


@dataclass
class Tally:
    """Counts of everything answered so far."""

    questions: int = 0
    visual_tokens: int = 0  # over all questions
    kept_tokens: int = 0
    seconds: float = 0.0  # inside ``generate()``: vision, prefill, decoding, choosing tokens; no picture is prepared

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


class Respondent(lmms):
    """Answers with a model that is loaded already; no pruner: the unpruned model.

    ``on_batch`` is told how many questions a finished batch had.
    """

    is_simple = False

    def __init__(
        self, loaded: LoadedModel, pruner: TokenPruner | None, on_batch: Callable[[int], None] = lambda questions: None
    ) -> None:
        super().__init__()
        self.loaded: LoadedModel | None = loaded
        self.device: torch.device = loaded.model.device
        self.batch_size = loaded.batch
        self.pruner, self.on_batch, self.tally = pruner, on_batch, Tally()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests. Raises UserError, naming the question, where one cannot be answered."""
        assert self.loaded is not None

        def options(number: int) -> str:
            return json.dumps(requests[number].args[2], sort_keys=True)

        def answer(numbers: list[int]) -> list[str]:
            return self._answer([requests[number] for number in numbers])

        real = [number for number, request in enumerate(requests) if not (request.metadata or {}).get(PADDING)]
        answers = self.loaded.in_batches(sorted(real, key=options), options, answer, self.on_batch)
        return [answers.get(number, "") for number in range(len(requests))]  # those that only pad have none

    def _answer(self, requests: list[Instance]) -> list[str]:
        asked = [conversation_of(request, self.task_dict) for request in requests]
        options, stops = generation_options(requests[0].args[2])
        answers = [""] * len(requests)
        for shown in (True, False):  # processors take pictures for all prompts of a batch, or for none
            numbers = [number for number, (_, pictures) in enumerate(asked) if bool(pictures) == shown]
            if numbers:
                where = f"{requests[0].task_name}, question {requests[numbers[0]].doc_id}"
                texts = self._generate([asked[number] for number in numbers], options, where)
                for number, text in zip(numbers, texts, strict=True):
                    answers[number] = cut(text, stops)
        return answers

    def _generate(self, rows: list[Any], options: dict[str, Any], where: str) -> list[str]:
        loaded = self.loaded
        assert loaded is not None
        try:
            for conversation, _ in rows:
                for turn in conversation:
                    for part in turn["content"]:
                        check_text(loaded.model, loaded.processor, part.get("text", ""))
            conversations, pictures = zip(*rows, strict=True)
            inputs = chat_inputs(loaded.processor, conversations, pictures, loaded.image_options)
            started = time.perf_counter()
            written = loaded.generate(inputs, self.pruner, **options)
        except PtpruneError as error:
            raise UserError(f"{where}: {str(error).removeprefix('question: ')}") from error
        before, after = written.visual_tokens
        self.tally += Tally(len(rows), before, after, time.perf_counter() - started)
        return written.texts

    def clean(self) -> None:
        """lmms-eval is done with the model; a judge may need its memory."""
        self.loaded = None
        super().clean()

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("model ptprune writes answers; it does not score given ones (loglikelihood)")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("model ptprune answers in one round; it does not answer several (multi_round)")
