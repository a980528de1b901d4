"""Tokens: those of stock vLLM at ratio 1, those of this package's own path through transformers below."""

from __future__ import annotations

import pytest
from engines import BY_SCORE, HIGH, IMAGE_TOKEN, SMALL, SQUARE, TILE, WIDE, Engines, in_transformers, turn

QUESTIONS = ["which digit is blue?", "what colour is the 7?", "how many letters are there?"]
PICTURES = {"wide": WIDE, "high": HIGH, "square": SQUARE, "one tile": SMALL}
FORMATS = ["native", "chat"]
LEVELS = ["attention", "neighbourhood", "embedding", "none"]


@pytest.mark.parametrize("checkpoint", FORMATS)
def test_ratio_one_is_stock(engines: Engines, checkpoint: str) -> None:
    prompts = [
        (turn(question, chat=checkpoint == "chat"), [image]) for question in QUESTIONS for image in PICTURES.values()
    ]
    stock = engines.ask(engines.get(checkpoint, None), *prompts)
    pruned = engines.ask(engines.get(checkpoint, {"keep_ratio": 1}), *prompts)
    assert [(a.prompt, a.tokens) for a in pruned] == [(a.prompt, a.tokens) for a in stock]
    assert len({tuple(a.tokens) for a in stock}) > 3  # or nothing was compared


@pytest.mark.parametrize("image", PICTURES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("checkpoint", FORMATS)
def test_below_one_is_the_transformers_path(engines: Engines, checkpoint: str, level: str, image: str) -> None:
    chat = engines.checkpoints["chat"] if checkpoint == "chat" else None
    engine = engines.get(checkpoint, {"keep_ratio": 0.75, "instruction": level, **BY_SCORE})
    text = turn(QUESTIONS[len(image) % 3], chat=chat is not None)
    full = engines.ask(engines.get(checkpoint, None), (text, [PICTURES[image]]))[0].prompt
    for ratio in (None, 0.5, 0.25, 0.05):
        setting = {"keep_ratio": ratio or 0.75, "instruction": level, **BY_SCORE}
        expected = in_transformers(text, [PICTURES[image]], setting, chat)
        answer = engines.ask(engine, (text, [PICTURES[image]]), ratio=ratio)[0]
        assert answer.kept == expected.kept
        assert answer.prompt == expected.prompt
        assert answer.tokens == expected.tokens
        dropped = full.count(IMAGE_TOKEN) - len(answer.kept[0])
        assert len(answer.prompt) == len(full) - dropped


@pytest.mark.parametrize("level", ["neighbourhood", "none"])
def test_the_default_choice_is_that_of_transformers_but_for_rounding(engines: Engines, level: str) -> None:
    setting = {"keep_ratio": 0.25, "instruction": level}
    expected = in_transformers(turn(QUESTIONS[0]), [WIDE], setting)
    answer = engines.ask(engines.get("native", setting), (turn(QUESTIONS[0]), [WIDE]))[0]
    [mine], [theirs] = answer.kept, expected.kept
    assert len(mine) == len(theirs) == round(0.25 * 7 * TILE)
    assert len({*mine} & {*theirs}) >= len(theirs) - 2
    [top] = in_transformers(turn(QUESTIONS[0]), [WIDE], {**setting, **BY_SCORE}).kept
    assert len({*mine} & {*top}) < len(theirs) - 2, "it is another choice"


@pytest.mark.parametrize(
    "options",
    [
        {"region": "attention-mass", "token": "received-attention", "thumbnail": "whole"},
        {"region": "uniform", "token": "activation", "instruction": "none", "ranking": "image"},
        {"token": "gradient", "thumbnail": "region", "temperature": 0.3, "alpha": 0.8, "normalize_instruction": False},
        {"keep_tokens": 40},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_all_levels_have_their_options(engines: Engines, options: dict[str, object]) -> None:
    setting = {"keep_ratio": 0.4, **BY_SCORE, **options}
    expected = in_transformers(turn(QUESTIONS[0]), [WIDE], setting)
    answer = engines.ask(engines.get("native", setting), (turn(QUESTIONS[0]), [WIDE]))[0]
    assert (answer.kept, answer.tokens) == (expected.kept, expected.tokens)


def test_a_request_cannot_ask_for_more_than_the_server_keeps(engines: Engines) -> None:
    for setting, most in (({"keep_ratio": 0.5}, 56), ({"keep_tokens": 20}, 20)):
        engine = engines.get("native", setting)
        answer = engines.ask(engine, (turn(QUESTIONS[0]), [WIDE]), ratio=0.9)[0]
        assert answer.prompt.count(IMAGE_TOKEN) == most
        fewer = engines.ask(engine, (turn(QUESTIONS[0]), [WIDE]), ratio=0.1)[0]
        assert fewer.prompt.count(IMAGE_TOKEN) == round(0.1 * 7 * TILE)
