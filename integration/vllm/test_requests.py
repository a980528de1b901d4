"""Requests of every kind: several images, turns, ratios in one batch, chunked prefill, text, videos."""

from __future__ import annotations

import logging

import pytest
import torch
from engines import BY_SCORE, HIGH, IMAGE_TOKEN, SMALL, SQUARE, WIDE, Engines, in_transformers, turn, video

QUESTION, OTHER = "which digit is blue?", "how many letters are there?"
GUIDED = {"keep_ratio": 0.5, **BY_SCORE}
EMBEDDING = {"keep_ratio": 0.75, "instruction": "embedding", **BY_SCORE}
BOTTOM_UP = {"keep_ratio": 0.75, "instruction": "none", **BY_SCORE}


def test_several_images_in_a_turn(engines: Engines) -> None:
    text = turn(QUESTION, images=3)
    for setting in (EMBEDDING, BOTTOM_UP):
        expected = in_transformers(text, [WIDE, SMALL, HIGH], setting)
        answer = engines.ask(engines.get("native", setting), (text, [WIDE, SMALL, HIGH]))[0]
        assert answer == expected_like(answer, expected)


def test_attention_sees_one_image_at_a_time(engines: Engines) -> None:
    """Each image keeps what it would keep in a prompt without the others' tokens, and their marks as text."""
    marks = "<img></img>"
    answer = engines.ask(engines.get("native", GUIDED), (turn(QUESTION, images=2), [WIDE, HIGH]))[0]
    first = in_transformers(f"<|user|><IMG_CONTEXT>{marks} {QUESTION}<|end|><|assistant|>", [WIDE], GUIDED)
    second = in_transformers(f"<|user|>{marks}<IMG_CONTEXT> {QUESTION}<|end|><|assistant|>", [HIGH], GUIDED)
    # the text between the first picture and the second one's place, "<img>", is no instruction here, but text there
    assert answer.kept[1] == second.kept[0]
    assert len(set(answer.kept[0]) & set(first.kept[0])) > 0.9 * len(first.kept[0])


def test_an_image_belongs_to_the_question_of_its_turn(engines: Engines) -> None:
    first = turn(QUESTION) + " 4<|end|>"
    text = first + turn(OTHER)
    for setting in (EMBEDDING, {**EMBEDDING, "instruction": "attention"}):
        answer = engines.ask(engines.get("native", setting), (text, [WIDE, HIGH]))[0]
        assert answer.kept[0] == in_transformers(turn(QUESTION), [WIDE], setting).kept[0]
        if setting == EMBEDDING:  # attention would see the first turn's picture in transformers
            assert answer.kept[1] == in_transformers(turn(OTHER), [HIGH], setting).kept[0]


def test_ratios_mixed_in_a_batch(engines: Engines) -> None:
    engine = engines.get("native", EMBEDDING)
    prompts = [
        (turn(question), [image], ratio)
        for question, image, ratio in (
            (QUESTION, WIDE, None),
            (OTHER, WIDE, 0.3),
            (QUESTION, HIGH, 0.6),
            (QUESTION, SMALL, 0.05),
            (OTHER, SQUARE, 0.74),
        )
    ] + [(turn("what colour is the 7?", images=0), [], None)]
    together = engines.ask_each(engine, prompts)
    for answer, (text, images, ratio) in zip(together, prompts, strict=True):
        setting = {**EMBEDDING, "keep_ratio": ratio or 0.75} if images else None
        expected = (
            in_transformers(text, images, setting)
            if images
            else engines.ask(engines.get("native", None), (text, []))[0]
        )
        assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)


def test_chunked_prefill(engines: Engines) -> None:
    """Chunks that end inside an image's kept tokens: the image is encoded once, the answer is the same."""
    setting = {"keep_ratio": 0.75, "instruction": "attention"}
    engine = engines.get("native", setting, max_num_batched_tokens=160, max_num_seqs=2)
    prompts = [(turn(QUESTION), [WIDE]), (turn(OTHER, images=2), [HIGH, SQUARE])]
    answers = engines.ask(engine, *prompts)
    assert len(answers[1].prompt) > 160  # or nothing was cut into chunks
    for answer, (text, images) in zip(answers, prompts, strict=True):
        expected = engines.ask(engines.get("native", setting), (text, images))[0]
        assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)


def test_text_and_videos_are_untouched(engines: Engines) -> None:
    stock = engines.get("native", None)
    text = turn(QUESTION, images=0)
    prompts = [(text, {}, None), ("<|user|><video> " + QUESTION + "<|end|><|assistant|>", {"video": [video()]}, None)]
    expected = engines.ask_each(stock, prompts)
    for setting in (GUIDED, BOTTOM_UP):
        answers = engines.ask_each(engines.get("native", setting), prompts)
        assert [(a.prompt, a.tokens) for a in answers] == [(a.prompt, a.tokens) for a in expected]
        assert answers[0].kept == []


def test_a_video_beside_an_image(engines: Engines) -> None:
    """The image is pruned, the video is not; the question is the text after both."""
    text = f"<|user|><IMG_CONTEXT><video> {QUESTION}<|end|><|assistant|>"
    data = {"image": [WIDE], "video": [video()]}
    full = engines.ask_each(engines.get("native", None), [(text, data, None)])[0].prompt
    answer = engines.ask_each(engines.get("native", EMBEDDING), [(text, data, None)])[0]
    alone = in_transformers(turn(QUESTION), [WIDE], EMBEDDING)
    assert len(full) - len(answer.prompt) == full.count(IMAGE_TOKEN) - len(alone.kept[0])
    assert answer.kept == alone.kept


def test_images_are_encoded_one_by_one(engines: Engines) -> None:
    """An encoder batch of shorter images would be larger than the one that memory was measured for."""
    prompt = (turn(QUESTION, images=3), [WIDE, SMALL, HIGH])
    assert engines.ask(engines.get("native", None), prompt)[0].tiles == [17]
    assert engines.ask(engines.get("native", EMBEDDING), prompt)[0].tiles == [7, 1, 9]


def test_embeddings_from_clients_are_untouched(engines: Engines) -> None:
    embeddings = torch.randn(1, 40, 160, generator=torch.Generator().manual_seed(0))
    request = [(turn(QUESTION), {"image": embeddings}, None)]
    stock, pruned = (
        engines.ask_each(engines.get("native", setting, enable_mm_embeds=True), request)[0]
        for setting in (None, GUIDED)
    )
    assert pruned.prompt.count(IMAGE_TOKEN) == 40
    assert (pruned.prompt, pruned.tokens) == (stock.prompt, stock.tokens)


def test_an_overflowing_encoder_does_not_end_the_server(
    engines: Engines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    engine = engines.get("overflowing", {"keep_ratio": 0.25, **BY_SCORE})
    answer = engines.ask(engine, (turn(QUESTION), [WIDE]))[0]
    assert answer.kept == [list(range(0, 112, 4))]
    assert "the token scores hold NaN or infinite values" in caplog.text


def expected_like(answer, expected):
    """The oracle's answer, with what only an engine has."""
    expected.cached, expected.tiles = answer.cached, answer.tiles
    return expected
