"""The parts of the vLLM plugin that need no vLLM: settings, ratios, turns. The rest is tested in integration/vllm."""

from __future__ import annotations

import re

import jinja2
import pytest
from transformers import AutoTokenizer

from ptprune import PyramidTokenPruning
from ptprune.tiny import CHECKPOINT
from ptprune.vllm.settings import num_kept, pruner_of, requested_ratio
from ptprune.vllm.turn import ImageText, answer_start, texts_around

IMAGE, USER, ANSWER, CLOSE = 60, 61, [62, 63], 64


def test_settings_are_the_methods_options_before_the_language_model():
    pruner = pruner_of({"keep_ratio": 0.25, "instruction": "embedding", "alpha": 0.3})
    expected = PyramidTokenPruning(keep_ratio=0.25, instruction="embedding", alpha=0.3, layer=0, positions="compact")
    assert pruner == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0}, "ptprune: keep_ratio must be over 0 and at most 1, got 0"),
        ({"ratio": 0.5}, "ptprune: no option is called 'ratio', there are keep_ratio, keep_tokens"),
        ({"coverage": 0.9}, "ptprune: coverage cannot be set here: vLLM must know"),
        ({"layer": 0}, "ptprune: layer cannot be set here"),
        (True, "ptprune: the setting must be an object"),
    ],
)
def test_settings_that_cannot_be_served(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pruner_of(settings)


@pytest.mark.parametrize(
    ("server", "request_setting", "kept"),
    [
        ({"keep_ratio": 0.5}, None, 50),
        ({"keep_ratio": 0.5}, {}, 50),
        ({"keep_ratio": 0.5}, {"keep_ratio": 0.25}, 25),
        ({"keep_ratio": 0.5}, {"keep_ratio": 1}, 50),
        ({"keep_tokens": 30}, {"keep_ratio": 0.9}, 30),
        ({"keep_tokens": 30}, {"keep_ratio": 0.1}, 10),
        ({"keep_ratio": 0.5}, {"keep_ratio": 0.001}, 1),
    ],
)
def test_a_request_can_only_lower_what_is_kept(server, request_setting, kept):
    pruner = pruner_of(server)
    assert num_kept(pruner, requested_ratio(pruner, request_setting), 100) == kept


@pytest.mark.parametrize("request_setting", [{"keep_ratio": 0}, {"keep_ratio": "x"}, {"alpha": 0.1}, 0.5, [0.5]])
def test_bad_requests(request_setting):
    with pytest.raises(ValueError, match=r"^ptprune: "):
        requested_ratio(pruner_of({}), request_setting)


def spans(prompt):
    return [range(i, i + 1) for i, token in enumerate(prompt) if token == IMAGE]


def test_text_around_the_images_of_two_turns():
    first = [USER, 1, IMAGE, 2, IMAGE, 3, 4, CLOSE, *ANSWER]
    prompt = [*first, 5, CLOSE, USER, 6, IMAGE, 7, CLOSE, *ANSWER]
    texts = texts_around(prompt, spans(prompt), spans(prompt), ANSWER)
    instruction = (3, 4, CLOSE, *ANSWER)
    assert texts[:2] == [
        ImageText((USER, 1), (2, *instruction), 5),
        ImageText((USER, 1, 2), instruction, 5),
    ]
    history = (USER, 1, 2, *instruction, 5, CLOSE, USER, 6)
    assert texts[2] == ImageText(history, (7, CLOSE, *ANSWER), 4)
    assert texts[0].instruction_alone == ImageText((), instruction, 5)
    # a later turn changes nothing
    assert texts_around(first, spans(first), spans(first), ANSWER) == texts[:2]


def test_without_a_beginning_of_answers_the_prompt_is_one_turn():
    prompt = [USER, IMAGE, 3, CLOSE, *ANSWER, 5, CLOSE]
    assert texts_around(prompt, spans(prompt), spans(prompt), []) == [ImageText((USER,), tuple(prompt[2:]), 6)]


def test_a_video_ends_the_text_before_the_instruction():
    prompt = [USER, IMAGE, 3, 70, 4, *ANSWER]
    [text] = texts_around(prompt, [*spans(prompt), range(3, 4)], spans(prompt), ANSWER)
    assert text == ImageText((USER,), (3, 4, *ANSWER), 3)


def test_where_answers_begin_is_read_from_the_chat_template():
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert answer_start(tokenizer) == tokenizer.encode("<|assistant|>")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(jinja2.TemplateError):
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}])
    assert answer_start(tokenizer) == []
    tokenizer.chat_template = None
    assert answer_start(tokenizer) == []
