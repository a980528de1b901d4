"""A loaded model as lmms-eval sees one: requests in, answers out, in batches, with or without pruning."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NoReturn

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from ptprune.asking.chat import chat_inputs, check_length, check_text
from ptprune.asking.loaded import LoadedModel
from ptprune.errors import PtpruneError, UserError
from ptprune.lmms.questions import conversation_of, cut, generation_options
from ptprune.pruner import TokenPruner

PADDING = "__padding_only__"  # lmms-eval's mark on requests that only make all processes' shares equally long


@dataclass
class Tally:
    """What answering took so far.

    Attributes:
        questions: answered.
        visual_tokens, kept_tokens: over all questions.
        seconds: inside ``generate()``: vision, prefill, decoding and choosing tokens, not the preparation of pictures.
    """

    questions: int = 0
    visual_tokens: int = 0
    kept_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


class Respondent(lmms):
    """Answers with a model that is loaded already.

    Args:
        loaded: the model, its processor, and how many questions make a batch.
        pruner: None for the unpruned model.
        on_batch: told how many questions a finished batch had.
    """

    is_simple = False

    def __init__(
        self,
        loaded: LoadedModel,
        pruner: TokenPruner | None,
        on_batch: Callable[[int], None] = lambda questions: None,
    ) -> None:
        super().__init__()
        self.loaded: LoadedModel | None = loaded
        self.device: torch.device = loaded.model.device
        self.batch_size = loaded.batch
        self.pruner = pruner
        self.on_batch = on_batch
        self.tally = Tally()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests.

        Raises:
            UserError: where a question cannot be asked, or the pruner refuses the model or a prompt.
        """
        answers = [""] * len(requests)
        for numbers in self._batches(requests):
            for number, text in zip(numbers, self._answer([requests[n] for n in numbers]), strict=True):
                answers[number] = text
            self.on_batch(len(numbers))
        return answers

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Numbers of requests with the same generation options; those that only pad are left without an answer."""

        def written(number: int) -> str:
            return json.dumps(requests[number].args[2], sort_keys=True)

        real = [number for number, request in enumerate(requests) if not (request.metadata or {}).get(PADDING)]
        for _, group in groupby(sorted(real, key=written), key=written):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                yield alike[start : start + self.batch_size]

    def _answer(self, requests: list[Instance]) -> list[str]:
        asked = [conversation_of(request, self.task_dict) for request in requests]
        options, stops = generation_options(requests[0].args[2])
        answers = [""] * len(requests)
        for shown in (True, False):  # processors take pictures for all prompts of a batch, or for none
            numbers = [number for number, (_, pictures) in enumerate(asked) if bool(pictures) == shown]
            if numbers:
                rows = [asked[number] for number in numbers]
                texts = self._generate(
                    rows, options, f"{requests[0].task_name}, question {requests[numbers[0]].doc_id}"
                )
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
            check_length(loaded.model, inputs, options["max_new_tokens"])
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
