"""Asks a model about pictures, with or without pruning."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ptprune.cli.errors import UserError
from ptprune.cli.measuring import PhaseMeter, vision_lap
from ptprune.clock import Clock
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
    """

    text: str
    new_tokens: int
    seconds: dict[str, float]
    kv_bytes: int


def make_prompt(processor: Any, images: list[Image.Image], question: str, max_tiles: int | None) -> Any:
    """Model inputs of a chat turn that shows the pictures and asks the question.

    Raises:
        UserError: where the question holds the text that stands for a picture, or the checkpoint has no chat template.
    """
    token = getattr(processor, "image_token", None)
    if token and token in question:
        raise UserError(f"--question: {token!r} stands for a picture; leave it out, pictures are put in front")
    if not (processor.chat_template or getattr(processor.tokenizer, "chat_template", None)):
        raise UserError("--model: the checkpoint has no chat template; give an instruction-tuned one")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    tiling = {} if max_tiles is None else {"max_patches": max_tiles}
    return processor(images=images, text=[text], return_tensors="pt", **tiling)


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
            "in all; give fewer pictures, a smaller --max-tiles or a shorter question"
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
        UserError: where the pruner refuses the model or the prompt.
    """
    clock = Clock()
    meter = PhaseMeter(clock, on_pass)
    inputs = inputs.to(model.device)
    length = inputs["input_ids"].shape[1]
    with refusals_in_one_line(), meter.watch(model):
        # an unpruned model is timed by us, a pruned one by its pruner
        arm = vision_lap(model, clock) if pruner is None else pruner(model, clock=clock)
        with arm, torch.no_grad(), clock.lap("rest"):
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    new = output[0, length:]
    seconds = {phase: clock.seconds[phase] for phase in PHASES} | {"total": sum(clock.seconds.values())}
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return Answer(text, len(new), seconds, meter.kv_bytes)


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """What this package refuses becomes a line for the user; errors from anywhere else stay errors."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        if not _raised_here(error):
            raise
        raise UserError(" ".join(str(error).split())) from error


def _raised_here(error: BaseException) -> bool:
    """Whether the raise statement stands in this package, not in a library that it called."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__", "")).startswith("ptprune.")
