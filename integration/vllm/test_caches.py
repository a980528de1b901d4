"""What the processor, encoder and prefix caches may take for the same image, and what not."""

from __future__ import annotations

from engines import BY_SCORE, HIGH, SQUARE, WIDE, Answer, Engines, in_transformers, turn
from vllm import LLM

QUESTION, OTHER = "what colour is the 4?", "is there a red square?"
ATTENTION, BOTTOM_UP = (
    {"keep_ratio": 0.75, "instruction": "attention", **BY_SCORE},
    {"keep_ratio": 0.75, "instruction": "none", **BY_SCORE},
)


def ask(engines: Engines, engine: LLM, setting: dict, text: str, image=SQUARE, ratio=None) -> Answer:
    """Whatever the engine has cached, its answer must be the right one."""
    answer = engines.ask(engine, (text, [image]), ratio=ratio)[0]
    expected = in_transformers(text, [image], {**setting, "keep_ratio": ratio or 0.75})
    assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)
    return answer


def test_the_same_request_again_hits_every_cache(engines: Engines) -> None:
    engine = engines.get("native", ATTENTION)
    first, second = (ask(engines, engine, ATTENTION, turn(QUESTION)) for _ in range(2))
    assert len(first.kept) == 1
    assert second.kept == []
    assert second.cached > 90


def test_another_question_misses_where_it_guides_and_hits_where_it_does_not(engines: Engines) -> None:
    for setting, encoded in ((ATTENTION, 1), (BOTTOM_UP, 0)):
        engine = engines.get("native", setting)
        ask(engines, engine, setting, turn(QUESTION), HIGH)
        other = ask(engines, engine, setting, turn(OTHER), HIGH)
        assert len(other.kept) == encoded
        assert (other.cached > 90) == (not encoded)


def test_another_ratio_is_another_image(engines: Engines) -> None:
    engine = engines.get("native", BOTTOM_UP)
    for ratio in (0.5, 0.2, None, 0.5):
        ask(engines, engine, BOTTOM_UP, turn(QUESTION), ratio=ratio)


def test_one_image_of_two_is_known(engines: Engines) -> None:
    engine, text = engines.get("native", BOTTOM_UP), turn(QUESTION, images=2)
    engines.ask(engine, (turn(QUESTION), [WIDE]))
    answer = engines.ask(engine, (text, [WIDE, SQUARE]))[0]
    expected = in_transformers(text, [WIDE, SQUARE], BOTTOM_UP)
    assert answer.kept == expected.kept[1:]
    assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)


def test_a_ratio_above_the_servers_is_the_servers(engines: Engines) -> None:
    engine = engines.get("native", BOTTOM_UP)
    ask(engines, engine, BOTTOM_UP, turn(QUESTION), WIDE)
    again = engines.ask(engine, (turn(QUESTION), [WIDE]), ratio=0.9)[0]
    assert again.kept == []
    assert again.cached > 50


def test_a_later_question_leaves_the_picture_as_it_was(engines: Engines) -> None:
    """The second turn finds the first one's tokens in the prefix cache, although the question guides."""
    engine, begin = engines.get("native", ATTENTION), turn(OTHER)
    engines.ask(engine, (begin, [WIDE]))
    later = engines.ask(engine, (begin + " no<|end|>" + turn(QUESTION, images=0), [WIDE]))[0]
    assert later.kept == []
    assert later.cached > 80
