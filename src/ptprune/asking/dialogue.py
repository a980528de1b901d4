"""Several questions about one picture, one after the other: later ones find the picture as the first one left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image

from ptprune.asking.chat import Conversation, ask_about, chat_inputs, check_length
from ptprune.asking.loaded import Generated, LoadedModel
from ptprune.conventions import MASK, cache_of, keep_cache
from ptprune.errors import UserError
from ptprune.pruner import TokenPruner
from ptprune.templates import render_chats


def last_answer(
    loaded: LoadedModel,
    picture: Image,
    questions: Sequence[str],
    pruner: TokenPruner | None,
    max_new_tokens: int,
    image_options: Mapping[str, Any] | None = None,
) -> Generated:
    """The answer to the last of several questions, and the visual tokens of the picture.

    The model answers every question itself. Its cache goes on from turn to turn, behind the very tokens that the model
    wrote: the picture is pruned once, when it is shown, with the first question.

    Raises:
        UserError: where the chat template writes an earlier turn anew once another follows, as the cache then holds
            another text.
        PtpruneError: where the prompt is too long, or the pruner refuses the model or the prompt.
    """
    conversation = list(ask_about(1, questions[0]))
    inputs = chat_inputs(loaded.processor, [conversation], [[picture]], image_options).to(loaded.model.device)
    images = loaded.visual_tokens(inputs["input_ids"])
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    cache: Any = None
    sequence, text = inputs["input_ids"], ""
    with loaded.attached(pruner), torch.no_grad():
        for number, question in enumerate(questions):
            if number:
                answered = {"role": "assistant", "content": [{"type": "text", "text": text}]}
                following = [*conversation, answered, *ask_about(0, question)]
                added = _added(loaded.processor, conversation, text, following)
                ids = torch.cat([_open(loaded.model, sequence), added.to(sequence)], dim=1)
                inputs = {"input_ids": ids, MASK: torch.ones_like(ids), **keep_cache(loaded.model, cache)}
                conversation = following
            check_length(loaded.model, inputs, max_new_tokens)
            length = inputs["input_ids"].shape[1]
            output = loaded.model.generate(**inputs, **options, return_dict_in_generate=True)
            sequence, cache = output.sequences, cache_of(output)
            text = loaded.processor.tokenizer.decode(sequence[0, length:], skip_special_tokens=True).strip()
    return Generated.of([text], images, pruner)


def _open(model: Any, sequence: torch.Tensor) -> torch.Tensor:
    """What was asked and answered, [1, length], without the token that ends an answer. It was the last one written, so
    that no cache holds it."""
    ends = model.generation_config.eos_token_id
    return sequence[:, :-1] if int(sequence[0, -1]) in (ends if isinstance(ends, list) else [ends]) else sequence


def _added(processor: Any, conversation: Conversation, answer: str, following: Conversation) -> torch.Tensor:
    """What the chat template writes behind an answer, LongTensor [1, length]: its end, the next question, and the
    beginning of the next answer.

    Raises UserError where the text before is no longer what it was.
    """
    before, after = render_chats(processor, [conversation, following])
    place = after.find(answer, len(before))
    if not after.startswith(before) or place < 0 or after[len(before) : place].strip():
        raise UserError("the chat template writes an earlier turn otherwise once another follows")
    rest = after[place + len(answer) :]
    return processor.tokenizer(rest, add_special_tokens=False, return_tensors="pt")["input_ids"]
