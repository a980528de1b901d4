"""Asks a model about pictures, with or without pruning, and says what pruning changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from ptprune.asking import first_token
from ptprune.asking.chat import check_length, make_prompt
from ptprune.asking.loaded import LoadedModel, whose_fault
from ptprune.asking.meter import PhaseMeter, vision_lap
from ptprune.clock import Clock
from ptprune.encoding import EncoderSettings
from ptprune.families import family_of
from ptprune.methods import PyramidTokenPruning
from ptprune.pruner import TokenPruner
from ptprune.report import ImageReport, PruningReport

WARM_UP_TOKENS = 2  # enough to run prefill and decode once
REGION = ("row", "column", "is_thumbnail", "grid", "box", "budget", "saliency", "encoded", "tile_score")
PHASES = ("vision", "select", "prefill", "decode")


@dataclass(frozen=True)
class Answer:
    """One call of generate().

    ``seconds`` are those of "vision" (ViT and projector), "select" (all of the pruner's own work), "prefill" (the first
    pass of the language model, without the former two), "decode" (all later passes), "rest" (what generate() does
    besides), and "total" (the call, wall clock).
    """

    text: str
    new_tokens: int
    seconds: dict[str, float]
    kv_bytes: int  # keys and values of all layers right after the prefill: the prompt's share of the cache
    full_kv_bytes: int  # the same had nothing been dropped


def ask(
    model: Any,
    processor: Any,
    inputs: Any,
    pruner: TokenPruner | None,
    max_new_tokens: int,
    on_pass: Callable[[int], None] = lambda number: None,
    **options: Any,
) -> Answer:
    """Answer greedily, with or without pruning.

    Args:
        inputs: of one prompt, as ``make_prompt`` returns them.
        on_pass: told before each forward pass how many there were, to show progress.
        options: of the model's ``generate()`` besides, such as a ``streamer``.

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
        with whose_fault(model, inputs), arm, torch.no_grad(), clock.lap("rest"):
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **options)
    new = output[0, length:]
    seconds = {phase: clock.seconds[phase] for phase in (*PHASES, "rest")} | {"total": sum(clock.seconds.values())}
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return Answer(text, len(new), seconds, meter.kv_bytes, meter.full_kv_bytes)


def describe(pruned: Answer, unpruned: Answer | None, report: PruningReport) -> dict[str, Any]:
    """What was answered and kept, in JSON types, with the keys that docs/command-line.md lists.

    Args:
        unpruned: the stock model's answer to the same prompt, if it was asked.
        report: of the pruned answer's prefill.
    """
    kept = report.to_dict()
    document: dict[str, Any] = {
        "answer": pruned.text,
        "visual_tokens": _change(*kept["visual_tokens"]),
        "encoded_tiles": _change(*kept["encoded_tiles"]),
        "encoded_tokens": _change(*kept["encoded_tokens"]),
        "sequence_length": _change(*kept["sequence_length"][0]),
        "kv_bytes": _change(unpruned.kv_bytes if unpruned else pruned.full_kv_bytes, pruned.kv_bytes),
        "new_tokens": pruned.new_tokens,
        "seconds": _reported(pruned),
        "regions": regions_of(kept),
    }
    if unpruned:
        alone = {"new_tokens": unpruned.new_tokens, "seconds": _reported(unpruned), "kv_bytes": unpruned.kv_bytes}
        document["unpruned"] = {"answer": unpruned.text, **alone}
    return document


def regions_of(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Every region of all pictures of ``PruningReport.to_dict()``, without its single tokens."""
    return [
        {"image": number, "tokens": len(region["indices"]), **{name: region[name] for name in REGION}}
        for number, image in enumerate(kept["images"])
        for region in image["regions"]
    ]


def _asked(pruner: TokenPruner, report: PruningReport) -> int | None:
    """How many tokens the settings ask for, where fewer were encoded and therefore kept; None elsewhere."""
    if isinstance(pruner, PyramidTokenPruning) and pruner.coverage is not None:
        return None  # asks for no number
    asked = [pruner.num_kept(image.num_tokens) for image in report.images]
    pairs = zip(report.images, asked, strict=True)
    capped = any(len(image.kept) == image.encoded_tokens < number for image, number in pairs)
    return sum(asked) if capped else None


def _reported(answer: Answer) -> dict[str, float]:
    return {phase: answer.seconds[phase] for phase in (*PHASES, "total")}


def _change(before: int, after: int) -> dict[str, int]:
    return {"before": before, "after": after}


def run_document(
    loaded: LoadedModel,
    pruner: TokenPruner,
    pictures: list[Image],
    question: str,
    max_new_tokens: int,
    compare: bool,
    say: Callable[[str], None] = lambda doing: None,
) -> tuple[dict[str, Any], list[ImageReport]]:
    """Ask one question about pictures that stand in one prompt.

    Args:
        compare: whether to ask the unpruned model too, and to time the first token of both.
        say: told what is being done.

    Returns:
        The JSON object of ``ptprune run``, with the keys that docs/command-line.md lists, and what was kept of each
        picture.

    Raises:
        PtpruneError: where the question cannot be asked, or the pruner refuses the model or the prompt.
    """
    say("cutting the pictures into tiles")
    inputs = make_prompt(loaded.model, loaded.processor, pictures, question, loaded.image_options)
    check_length(loaded.model, inputs, max_new_tokens)

    def answer(arm: TokenPruner | None, limit: int, doing: str) -> Answer:
        def show(passes: int) -> None:
            if doing:
                say(f"{doing}: {passes} tokens")

        return ask(loaded.model, loaded.processor, inputs, arm, limit, show)

    if compare:  # the first call initialises kernels and buffers: neither arm shall pay for it
        for arm in (None, pruner):
            answer(arm, min(WARM_UP_TOKENS, max_new_tokens), "warming up")
    unpruned = answer(None, max_new_tokens, "answering without pruning") if compare else None
    pruned = answer(pruner, max_new_tokens, "answering with pruning")
    assert pruner.report is not None
    document = describe(pruned, unpruned, pruner.report)
    document["encoder_settings"] = pruner.differing(EncoderSettings)
    if (asked := _asked(pruner, pruner.report)) is not None:
        document["capped_from"] = asked
    if unpruned:
        encoder = family_of(loaded.model).encoder(loaded.model)
        vision_layers = None if encoder is None else len(encoder.layers)
        arms = {"unpruned": lambda: answer(None, 1, "").seconds, "pruned": lambda: answer(pruner, 1, "").seconds}
        document["first_token"] = {
            **first_token.compare(arms, say),
            "parameters": loaded.model.num_parameters(),
            "at_scale": first_token.at_scale(pruner, pruner.report, vision_layers),
        }
    return document, pruner.report.images
