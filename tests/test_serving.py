"""The parts of the vLLM plugin that need no vLLM: settings, ratios, turns. The rest is tested in integration/vllm."""

from __future__ import annotations

import re

import jinja2
import pytest
import torch
from transformers import AutoTokenizer

from ptprune import PyramidTokenPruning
from ptprune.errors import MethodError
from ptprune.scores import TILE_SCORES
from ptprune.tiny import CHECKPOINT
from ptprune.vllm.plan import EncodingPlan, TilePlan, plan_tiles
from ptprune.vllm.settings import Request, num_kept, pruner_of, requested, tile_limits
from ptprune.vllm.turn import ImageText, answer_start, texts_around

IMAGE, USER, ANSWER, CLOSE = 60, 61, [62, 63], 64


def test_settings_are_the_methods_options_before_the_language_model():
    pruner = pruner_of({"keep_ratio": 0.25, "instruction": "embedding", "alpha": 0.3})
    served = {"layer": 0, "first_ratio": 0, "positions": "compact"}
    assert pruner == PyramidTokenPruning(keep_ratio=0.25, instruction="embedding", alpha=0.3, **served)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0}, "ptprune: keep_ratio must be over 0 and at most 1, got 0"),
        ({"ratio": 0.5}, "ptprune: no option is called 'ratio', there are tiles, tile_threshold"),
        ({"coverage": 0.9}, "ptprune: coverage cannot be set here: vLLM must know"),
        ({"layer": 0}, "ptprune: layer cannot be set here"),
        ({"first_ratio": 0.25}, "ptprune: first_ratio cannot be set here: vLLM drops tokens once"),
        ({"second_layer": 8}, "ptprune: second_layer cannot be set here"),
        ({"vision_layer": 2}, "ptprune: vision_layer cannot be set here: vLLM's encoder takes whole tiles"),
        ({"vision_margin": 2}, "ptprune: vision_margin cannot be set here"),
        ({"vision_floor": 0.5}, "ptprune: vision_floor cannot be set here"),
        ({"tile_cache": 1000}, "ptprune: tile_cache cannot be set here: vLLM's own encoder cache"),
        ({"tiles": "most"}, "ptprune: tiles must be 'all', 'salient' or a whole number from 1, got 'most'"),
        ({"tiles": 0}, "ptprune: tiles must be 'all', 'salient' or a whole number from 1, got 0"),
        ({"tile_score": "edges"}, "ptprune: tile_score must be one of 'detail'"),
        (
            {"tiles": "salient", "tile_score": "attention"},
            "ptprune: tiles='salient' cannot be chosen by tile_score='attention' here: vLLM must know",
        ),
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
    ratio = requested(pruner, request_setting).ratio
    assert num_kept(pruner, ratio, 100, 100) == kept
    assert num_kept(pruner, ratio, 100, 20) == min(kept, 20)


@pytest.mark.parametrize(
    "request_setting",
    [{"keep_ratio": 0}, {"keep_ratio": "x"}, {"alpha": 0.1}, 0.5, [0.5], {"tiles": 0}, {"tile_score": "random"}],
)
def test_bad_requests(request_setting):
    with pytest.raises(ValueError, match=r"^ptprune: "):
        requested(pruner_of({}), request_setting)


def test_a_request_for_salient_tiles_needs_a_score_that_pixels_tell():
    with pytest.raises(ValueError, match="^ptprune: tiles='salient' cannot be chosen by tile_score='detail-attention'"):
        requested(pruner_of({"tile_score": "detail-attention"}), {"tiles": "salient"})


SALIENT = {"tiles": "salient", "tile_threshold": 0.2}


@pytest.mark.parametrize(
    ("server", "asked", "expected"),
    [
        ({}, {"tiles": "all"}, Request()),
        ({}, {"tiles": 3}, Request(tiles=3)),
        ({}, {"tiles": "salient"}, Request(tiles="salient", tile_threshold=0.1)),
        ({}, {"tile_threshold": 0.5}, Request()),
        ({"tiles": 3}, {"tiles": 3, "keep_ratio": 0.2}, Request(0.2)),
        ({"tiles": 3}, {"tiles": 4}, Request()),
        ({"tiles": 3}, {"tiles": 2}, Request(tiles=2)),
        ({"tiles": 3}, SALIENT, Request(tiles="salient", tile_threshold=0.2)),
        (SALIENT, SALIENT, Request()),
        (SALIENT, {"tile_threshold": 0.1}, Request()),
        (SALIENT, {"tile_threshold": 0.3}, Request(tiles="salient", tile_threshold=0.3)),
        (SALIENT, {"tiles": "all", "tile_threshold": 0.3}, Request()),
        (SALIENT, {"tiles": 12}, Request(tiles=12)),
    ],
)
def test_a_request_that_asks_for_nothing_less_is_the_servers(server, asked, expected):
    assert requested(pruner_of(server), asked) == expected


def picture(*details):
    """Tiles of 64 x 64 pixels, noise of these strengths, two in a row, and a thumbnail."""
    noise = torch.randn(len(details), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tiles = (
        noise * torch.tensor(details)[:, None, None, None] + torch.linspace(-2, 2, len(details))[:, None, None, None]
    )
    rows = [torch.cat([*pair], dim=2) for pair in tiles.split(2)]
    thumbnail = torch.nn.functional.interpolate(torch.cat(rows, dim=1)[None], size=(64, 64), mode="area")
    return torch.cat([tiles, thumbnail])


@pytest.mark.parametrize(
    ("server", "asked", "given", "number"),
    [
        ({}, {}, None, None),
        ({}, {"tiles": 2}, (0, 2), 2),
        ({}, {"tiles": "salient"}, (0, 2, 3), 3),
        ({}, {"tiles": "salient", "tile_threshold": 0.9}, (2,), 1),
        ({"tiles": 4}, {"tiles": "salient"}, (0, 2, 3), 3),
        ({"tiles": "salient"}, {"tiles": 1}, (2,), 1),
        ({"tiles": 6}, {}, None, None),
        ({"tiles": 6}, {"tiles": 7}, None, None),
        ({"tiles": 5, "tile_score": "attention"}, {"tiles": 2}, (0, 1, 2, 3, 4, 5), 2),
        ({"tiles": 6, "tile_score": "attention"}, {}, None, None),
    ],
)
def test_the_fewest_tiles_of_server_and_request_are_encoded(server, asked, given, number):
    pruner = pruner_of(server)
    plan = plan_tiles(pruner, tile_limits(pruner, requested(pruner, asked)), picture(0.5, 0, 1, 0.3, 0, 0))
    assert plan == (None if given is None else TilePlan((3, 2), given, number))
    assert plan is None or plan.chosen_by_model == (pruner.tile_score == "attention")


def test_one_tile_is_always_encoded():
    assert plan_tiles(pruner_of({"tiles": "salient"}), [("salient", 0.1)], picture(0, 0)[:1]) is None


def test_where_tiles_lie():
    plan = TilePlan((2, 3), (1, 5), 2)
    tile, other, thumbnail = plan.places(plan.given)
    assert (tile.row, tile.column, other.row, other.column) == (0, 1, 1, 2)
    assert tile.box == (1 / 3, 0, 2 / 3, 1 / 2)
    assert (thumbnail.row, thumbnail.column) == (-1, -1)
    assert plan.columns(torch.tensor(plan.given), 4).tolist() == [4, 5, 6, 7, 20, 21, 22, 23, 24, 25, 26, 27]


def test_plans_travel_as_numbers():
    plans = [
        EncodingPlan(5, 3, 2, None),
        EncodingPlan(7, 0, 0, TilePlan((1, 2), (), 0)),
        EncodingPlan(9, 1, 1, TilePlan((4, 5), (0, 7, 19), 2)),
    ]
    assert EncodingPlan.read([plan.write() for plan in plans]) == plans
    assert EncodingPlan.read(torch.stack([plans[0].write()] * 2)) == [plans[0]] * 2


def test_a_tile_score_says_whether_it_looks_at_the_thumbnail(monkeypatch):
    monkeypatch.setattr(TILE_SCORES, "_scores", dict(TILE_SCORES._scores))

    @TILE_SCORES.register("quiet")
    def quiet(image):
        return image.thumbnail_attention()

    pruner = pruner_of({"tiles": 2, "tile_score": "quiet"})
    with pytest.raises(MethodError, match="needs="):
        plan_tiles(pruner, tile_limits(pruner, Request()), picture(1, 0, 0, 0))


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
