"""Asks a model about pictures, with or without pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ptprune.cli.measuring import PhaseMeter, vision_lap
from ptprune.clock import Clock
from ptprune.errors import UserError
from ptprune.processors import ask_about, chat_inputs
from ptprune.pruner import TokenPruner

PHASES = ("vision", "select", "prefill", "decode")


@dataclass(frozen=True)
class Answer:
    """One call of generate().

    Attributes:
        text: what the model said.
        new_tokens: how many tokens that took.
        seconds: "vision" (ViT and projector), "select" (all of the pruner's own work), "prefill" (the first pass of the
            language model, without the former two), "decode" (all later passes), "total" (the call, wall clock).
        kv_bytes: keys and values of all layers right after the prefill: the prompt's share of the cache.
        full_kv_bytes: the same had nothing been dropped.
    """

    text: str
    new_tokens: int
    seconds: dict[str, float]
    kv_bytes: int
    full_kv_bytes: int


def make_prompt(
    model: Any, processor: Any, images: list[Image.Image], question: str, image_options: dict[str, Any]
) -> Any:
    """Model inputs of a chat turn that shows the pictures and asks the question.

    Args:
        image_options: of the image processor, instead of its own.

    Raises:
        UserError: where the question holds the text that stands for a picture, or the checkpoint has no chat template.
    """
    check_text(model, processor, question)
    return chat_inputs(processor, [ask_about(len(images), question)], [images], image_options)


def check_text(model: Any, processor: Any, text: str) -> None:
    """Refuse what cannot become part of a prompt.

    Raises:
        UserError: where the text holds what stands for a picture, or the checkpoint has no chat template.
    """
    for token in _placeholders(model, processor):
        if token in text:
            raise UserError(f"--question: {token!r} stands for a picture; leave it out, pictures are put in front")
    if not (processor.chat_template or getattr(processor.tokenizer, "chat_template", None)):
        raise UserError("--model: the checkpoint has no chat template; give an instruction-tuned one")


def _placeholders(model: Any, processor: Any) -> list[str]:
    """What stands for pictures and videos, in a prompt as written and as the model gets it."""
    ids = [getattr(model.config, name, None) for name in ("image_token_id", "video_token_id")]
    tokens = processor.tokenizer.convert_ids_to_tokens([number for number in ids if number is not None])
    return [token for token in dict.fromkeys([*processor.all_special_multimodal_tokens, *tokens]) if token]


def check_length(model: Any, inputs: Any, max_new_tokens: int) -> None:
    """Refuse a prompt that does not fit the model's positions: it would answer, and wrongly.

    Raises:
        UserError: naming both lengths.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length + max_new_tokens > limit:
        raise UserError(
            f"the prompt has {length} tokens and --max-new-tokens is {max_new_tokens}, but the model takes {limit} "
            "in all; give fewer or smaller pictures, fewer tiles or a shorter question"
        )


def ask(
    model: Any,
    processor: Any,
    inputs: Any,
    pruner: TokenPruner | None,
    max_new_tokens: int,
    on_pass: Callable[[int], None] = lambda number: None,
) -> Answer:
    """Answer greedily, with or without pruning.

    Args:
        inputs: of one prompt, as ``make_prompt`` returns them.
        on_pass: told before each forward pass how many there were, to show progress.

    Raises:
        PtpruneError: where the pruner refuses the model or the prompt.
    """
    clock = Clock()
    meter = PhaseMeter(model, clock, on_pass)
    inputs = inputs.to(model.device)
    length = inputs["input_ids"].shape[1]
    with meter.watch():
        # an unpruned model is timed by us, a pruned one by its pruner
        arm = vision_lap(model, clock) if pruner is None else pruner(model, clock=clock)
        with arm, torch.no_grad(), clock.lap("rest"):
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    new = output[0, length:]
    seconds = {phase: clock.seconds[phase] for phase in PHASES} | {"total": sum(clock.seconds.values())}
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return Answer(text, len(new), seconds, meter.kv_bytes, meter.full_kv_bytes)
