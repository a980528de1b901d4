"""Tiles that are left out: by their pixels where requests come in, by the thumbnail's attention in the model.

The oracle is transformers with the same settings, where a tile that is left out is a tile whose tokens are all dropped.
"""

from __future__ import annotations

from typing import Any

import pytest
from engines import (
    BY_SCORE,
    HIGH,
    IMAGE_TOKEN,
    SMALL,
    SQUARE,
    TILE,
    WHOLE,
    WIDE,
    Answer,
    Engines,
    in_transformers,
    turn,
)
from PIL import Image
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import MultiModalBudget

QUESTION, OTHER = "which digit is blue?", "what colour is the 7?"
PICTURES = [WHOLE, WIDE, HIGH, SQUARE, SMALL]
FIFTH = {"keep_ratio": 0.2, "instruction": "none", **BY_SCORE}
FEWER = {**FIFTH, "tiles": "salient", "tile_threshold": 0.5}
LOOKING = {**FIFTH, "tiles": 2, "tile_score": "attention"}


def same(answer: Answer, expected: Answer) -> bool:
    return (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)


@pytest.mark.parametrize(
    ("score", "level", "choices"),
    [
        ("detail", "attention", [{"tiles": "salient"}, {"tiles": "salient", "tile_threshold": 0.5}, {"tiles": 3}]),
        ("random", "none", [{"tiles": 2}]),
        ("attention", "embedding", [{"tiles": 2}, {"tiles": 9}]),
        ("detail-attention", "attention", [{"tiles": 3}]),
    ],
)
@pytest.mark.parametrize("checkpoint", ["native", "chat"])
def test_what_stays_is_what_stays_in_transformers(
    engines: Engines, checkpoint: str, score: str, level: str, choices: list[dict[str, Any]]
) -> None:
    chat = engines.checkpoints["chat"] if checkpoint == "chat" else None
    text = turn(QUESTION, chat=chat is not None)
    setting = {"keep_ratio": 0.2, "instruction": level, "tile_score": score, **BY_SCORE}
    engine = engines.get(checkpoint, setting)
    whole = [in_transformers(text, [image], setting, chat).kept for image in PICTURES]
    for choice in choices:
        expected = [in_transformers(text, [image], setting | choice, chat) for image in PICTURES]
        assert [each.kept for each in expected] != whole  # or nothing was left out
        for image, wanted in zip(PICTURES, expected, strict=True):
            answer = engines.ask(engine, (text, [image]), **choice)[0]
            assert answer.kept == wanted.kept
            assert same(answer, wanted)


@pytest.mark.parametrize(
    "options",
    [
        {**FEWER, "region": "attention-mass", "token": "received-attention", "thumbnail": "whole"},
        {**LOOKING, "region": "attention-mass", "token": "received-attention"},
        {**FEWER, "region": "uniform", "token": "activation", "ranking": "image"},
        {**LOOKING, "token": "activation", "thumbnail": "region", "tile_batch": 1},
        {**FEWER, "token": "gradient", "tile_batch": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_all_levels_have_their_options(engines: Engines, options: dict[str, Any]) -> None:
    answer = engines.ask(engines.get("native", options), (turn(QUESTION), [WHOLE]))[0]
    expected = in_transformers(turn(QUESTION), [WHOLE], options)
    assert answer.kept == expected.kept
    assert same(answer, expected)


def test_tiles_in_groups(engines: Engines) -> None:
    setting = {"keep_ratio": 0.5, "tile_batch": 4, **BY_SCORE}
    answer = engines.ask(engines.get("native", setting), (turn(QUESTION), [WHOLE]))[0]
    assert answer.tiles == [4, 4, 4, 1]
    assert same(answer, in_transformers(turn(QUESTION), [WHOLE], {"keep_ratio": 0.5, **BY_SCORE}))


def test_a_tile_that_is_left_out_is_not_encoded(engines: Engines) -> None:
    for setting, tiles in ((FEWER, [5]), (LOOKING, [1, 2])):
        answer = engines.ask(engines.get("native", setting), (turn(QUESTION), [WHOLE]))[0]
        assert answer.tiles == tiles


def test_a_blank_picture_keeps_its_thumbnail(engines: Engines) -> None:
    blank = Image.new("RGB", WHOLE.size, "white")
    answer = engines.ask(engines.get("native", FEWER), (turn(QUESTION), [blank]))[0]
    assert answer.tiles == [1]
    assert answer.prompt.count(IMAGE_TOKEN) == TILE
    assert same(answer, in_transformers(turn(QUESTION), [blank], FEWER))


@pytest.mark.parametrize("score", ["detail", "attention"])
def test_every_token_that_is_encoded_may_stay(engines: Engines, score: str) -> None:
    setting = {"keep_ratio": 1, "tile_score": score}
    answer = engines.ask(engines.get("native", setting), (turn(QUESTION), [WHOLE]), tiles=4)[0]
    expected = in_transformers(turn(QUESTION), [WHOLE], {**setting, "tiles": 4})
    assert answer.kept == []
    assert answer.prompt.count(IMAGE_TOKEN) == len(expected.kept[0]) == 5 * TILE
    assert same(answer, expected)


@pytest.mark.parametrize("setting", [FEWER, LOOKING], ids=["fewer", "looking"])
def test_several_images_and_a_batch(engines: Engines, setting: dict[str, Any]) -> None:
    prompts = [
        (turn(QUESTION, images=3), [WHOLE, SMALL, HIGH]),
        (turn(OTHER, images=2), [SQUARE, WHOLE]),
        (turn(OTHER), [WIDE]),
    ]
    answers = engines.ask(engines.get("native", setting), *prompts)
    for answer, (text, images) in zip(answers, prompts, strict=True):
        assert same(answer, in_transformers(text, images, setting))


def test_a_thumbnail_without_numbers_does_not_end_the_server(engines: Engines) -> None:
    answer = engines.ask(engines.get("overflowing", LOOKING), (turn(QUESTION), [WHOLE]))[0]
    assert len(answer.kept[0]) == answer.prompt.count(IMAGE_TOKEN) == 42


# --- requests -------------------------------------------------------------------------------------------------------

SALIENT = {"tiles": "salient"}


@pytest.mark.parametrize(
    ("server", "requests"),
    [  # what is asked for, and what counts
        (
            FIFTH,
            [
                (SALIENT, SALIENT),
                ({"tiles": 2, "keep_ratio": 0.1}, {"tiles": 2, "keep_ratio": 0.1}),
                ({**SALIENT, "tile_threshold": 0.5}, {**SALIENT, "tile_threshold": 0.5}),
                ({"tile_threshold": 0.5}, {}),
                (None, {}),
            ],
        ),
        (
            {**FIFTH, **SALIENT},
            [
                ({"tile_threshold": 0.5}, {**SALIENT, "tile_threshold": 0.5}),
                ({"tile_threshold": 0.01}, SALIENT),
                ({"tiles": "all"}, SALIENT),
                ({"tiles": 1}, {"tiles": 1}),
                ({"tiles": 11}, SALIENT),
            ],
        ),
        (
            {**FIFTH, "tiles": 4},
            [
                ({"tiles": 2}, {"tiles": 2}),
                ({"tiles": 9}, {"tiles": 4}),
                ({"tiles": "all"}, {"tiles": 4}),
                ({**SALIENT, "tile_threshold": 0.9}, {**SALIENT, "tile_threshold": 0.9}),
                (SALIENT, {"tiles": 4}),
            ],
        ),
        (LOOKING, [({"tiles": 1}, {"tiles": 1}), ({"tiles": 3}, {}), ({"keep_ratio": 0.1}, {"keep_ratio": 0.1})]),
    ],
    ids=["all", "salient", "4", "attention"],
)
def test_requests_can_only_lower_what_is_encoded(
    engines: Engines, server: dict[str, Any], requests: list[tuple[Any, dict[str, Any]]]
) -> None:
    prompts = [(turn(QUESTION), [WHOLE], asked) for asked, _ in requests]
    answers = engines.ask_each(engines.get("native", server), prompts)
    for answer, (asked, counts) in zip(answers, requests, strict=True):
        assert same(answer, in_transformers(turn(QUESTION), [WHOLE], server | counts)), asked
    assert len({len(answer.prompt) for answer in answers}) > 1


def test_other_tiles_are_another_image(engines: Engines) -> None:
    """Whatever the caches hold of this picture, each answer must be the right one."""
    engine, known = engines.get("native", FIFTH), []
    few = {**SALIENT, "tile_threshold": 0.5}
    for asked in ({}, SALIENT, {"tiles": 5}, few, {"tiles": 5}, {"tile_threshold": 0.5}, SALIENT):
        answer = engines.ask(engine, (turn(QUESTION), [WHOLE]), **asked)[0]
        counts = asked if "tiles" in asked else {}
        assert same(answer, in_transformers(turn(QUESTION), [WHOLE], FIFTH | counts))
        assert bool(answer.kept) == (counts not in known)
        known.append(counts)


@pytest.mark.parametrize("setting", [FEWER, LOOKING], ids=["fewer", "looking"])
def test_another_question_hits_every_cache(engines: Engines, setting: dict[str, Any]) -> None:
    """No question has a say in which tiles are encoded."""
    engine = engines.get("native", setting)
    first, again, other = (engines.ask(engine, (turn(q), [WHOLE]))[0] for q in (QUESTION, QUESTION, OTHER))
    assert (len(first.kept), again.kept, other.kept) == (1, [], [])
    assert other.tiles == []
    assert again.cached >= 32
    assert other.cached >= 32
    assert same(again, first)
    assert same(other, in_transformers(turn(OTHER), [WHOLE], setting))


def test_one_image_of_two_is_known(engines: Engines) -> None:
    engine, text = engines.get("native", FEWER), turn(QUESTION, images=2)
    engines.ask(engine, (turn(QUESTION), [WHOLE]))
    answer = engines.ask(engine, (text, [WHOLE, HIGH]))[0]
    expected = in_transformers(text, [WHOLE, HIGH], FEWER)
    assert answer.kept == expected.kept[1:]
    assert same(answer, expected)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "tokens"),
    [(FIFTH, 42), ({**FIFTH, **SALIENT}, 42), ({**FIFTH, "tiles": 1}, 2 * TILE)],
    ids=["all", "salient", "1"],
)
def test_memory_is_measured_with_the_largest_picture(engines: Engines, setting: dict[str, Any], tokens: int) -> None:
    """vLLM takes blank pictures for that, whose tiles are not salient, but those of another picture may be."""
    engine = engines.get("native", setting)
    # whatever is known of a blank picture that a client sent
    engines.ask(engine, (turn(QUESTION), [Image.new("RGB", WHOLE.size, "white")]))
    budget = MultiModalBudget(engine.llm_engine.vllm_config, MULTIMODAL_REGISTRY)
    assert budget.mm_max_toks_per_item["image"] == tokens
