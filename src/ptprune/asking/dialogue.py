"""Several questions about one picture, one after the other: later ones find the picture as the first one left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image

from ptprune.asking.chat import ask_about, chat_inputs, check_length
from ptprune.asking.loaded import Generated, LoadedModel
from ptprune.conventions import MASK, cache_of, keep_cache
from ptprune.errors import UserError
from ptprune.pruner import TokenPruner


def last_answer(
    loaded: LoadedModel,
    picture: Image,
    questions: Sequence[str],
    pruner: TokenPruner | None,
    max_new_tokens: int,
    image_options: Mapping[str, Any] | None = None,
) -> Generated:
    """The answer to the last of several questions, and the visual tokens of the picture.

    The model answers every question itself. Its cache goes on from turn to turn: the picture is pruned once, when it
    is shown, with the first question.

    Raises:
        UserError: where the chat template writes earlier turns otherwise than the model did, as the cache then holds
            another text.
        PtpruneError: where the prompt is too long, or the pruner refuses the model or the prompt.
    """
    conversation = list(ask_about(1, questions[0]))
    inputs = chat_inputs(loaded.processor, [conversation], [[picture]], image_options).to(loaded.model.device)
    images = loaded.visual_tokens(inputs["input_ids"])
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    cache: Any = None
    sequence = inputs["input_ids"]
    with loaded.attached(pruner), torch.no_grad():
        for number, question in enumerate(questions):
            if number:
                conversation += ask_about(0, question)
                ids = chat_inputs(loaded.processor, [conversation], [[picture]], image_options)["input_ids"]
                ids = ids.to(loaded.model.device)
                seen = sequence[:, :-1]  # the last token that was written has not been read
                if not torch.equal(ids[:, : seen.shape[1]], seen):
                    raise UserError("the chat template writes an earlier turn otherwise than the model wrote it")
                inputs = {"input_ids": ids, MASK: torch.ones_like(ids), **keep_cache(loaded.model, cache)}
            check_length(loaded.model, inputs, max_new_tokens)
            length = inputs["input_ids"].shape[1]
            output = loaded.model.generate(**inputs, **options, return_dict_in_generate=True)
            sequence, cache = output.sequences, cache_of(output)
            text = loaded.processor.tokenizer.decode(sequence[0, length:], skip_special_tokens=True)
            conversation.append({"role": "assistant", "content": [{"type": "text", "text": text.strip()}]})
    return Generated.of([text], images, pruner)
