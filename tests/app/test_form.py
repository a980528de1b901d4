"""What visitors send is anything: it becomes a pruner and a question, or one line that says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptprune.app.form import MAX_QUESTION, OF_PTP, Form, further, names_of
from ptprune.errors import PtpruneError, UserError
from ptprune.methods import METHODS, FastV, PaperTokenPruning, PyramidTokenPruning

SENT: dict[str, Any] = {
    "picture": "cat.png",
    "question": "  which?  ",
    "model": "ptprune-tiny",
    "method": "ptp",
    "keep_ratio": 0.25,
    "levels": ["question", "tokens"],
    "layer": "",
    "alpha": "",
    "temperature": " ",
    "thumbnail": "",
    "tiles": "",
    "vision_layer": "",
    "max_tiles": None,
    "max_new_tokens": 64,
    "more": "",
    "compare": True,
}


def test_controls_left_alone_are_the_defaults() -> None:
    form = Form.read(SENT)
    assert form.pruner() == PyramidTokenPruning(keep_ratio=0.25)
    assert form.prompt() == (Path("cat.png"), "which?", "ptprune-tiny", None)
    assert form == Form(Path("cat.png"), "which?", "ptprune-tiny", keep_ratio=0.25)


def test_every_control_counts() -> None:
    sent = {**SENT, "layer": " 3", "alpha": "0.2", "temperature": 2, "thumbnail": "whole", "more": 'ranking="image"'}
    wanted = PyramidTokenPruning(keep_ratio=0.25, layer=3, alpha=0.2, temperature=2, thumbnail="whole", ranking="image")
    assert Form.read(sent).pruner() == wanted
    tower = {"tiles": "salient", "vision_layer": "2"}
    wanted = replace(wanted, tiles="salient", vision_layer=2)
    assert Form.read({**sent, **tower}).pruner() == wanted
    assert Form.read({**sent, **tower, "max_tiles": 6, "max_new_tokens": 9, "compare": False}) == Form(
        Path("cat.png"),
        "which?",
        "ptprune-tiny",
        keep_ratio=0.25,
        layer=3,
        alpha=0.2,
        temperature=2,
        thumbnail="whole",
        tiles="salient",
        vision_layer=2,
        more='ranking="image"',
        max_tiles=6,
        max_new_tokens=9,
        compare=False,
    )


@pytest.mark.parametrize(
    ("levels", "settings"),
    [
        (["tokens", "question"], {}),
        (["tiles", "tokens", "question"], {"region": "cls-similarity"}),
        (["tiles", "tokens"], {"region": "cls-similarity", "instruction": "none"}),
        (["tiles", "question"], {"region": "cls-similarity", "alpha": 1.0}),
        (["tokens"], {"instruction": "none"}),
        (["question"], {"alpha": 1.0}),
    ],
)
def test_levels_can_be_switched(levels: list[str], settings: dict[str, Any]) -> None:
    assert Form.read({**SENT, "levels": levels}).pruner() == PyramidTokenPruning(keep_ratio=0.25, **settings)


def test_the_papers_method_has_its_tiles_unless_they_are_switched_off() -> None:
    sent = {**SENT, "method": "ptp-paper", "levels": ["tiles", "tokens", "question"]}
    assert Form.read(sent).pruner() == PaperTokenPruning(keep_ratio=0.25)
    without = Form.read({**sent, "levels": ["tokens", "question"]}).pruner()
    assert without == PaperTokenPruning(keep_ratio=0.25, region="uniform")


def test_other_methods_take_what_they_have() -> None:
    """Levels and controls of PTP that are hidden then do not count."""
    sent = {**SENT, "method": "fastv", "levels": [], "alpha": 0.3, "thumbnail": "whole"}
    assert Form.read(sent).pruner() == FastV(keep_ratio=0.25)
    assert Form.read({**sent, "tiles": "salient"}).pruner() == FastV(keep_ratio=0.25, tiles="salient")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"levels": ["tiles"]}, "levels"),
        ({"levels": None}, "levels"),
        ({"method": "magic"}, "magic"),
        ({"keep_ratio": 0}, "keep_ratio"),
        ({"keep_ratio": None}, "keep_ratio"),
        ({"keep_ratio": "0.5"}, "keep_ratio"),
        ({"keep_ratio": True}, "keep_ratio"),
        ({"keep_ratio": float("nan")}, "keep_ratio"),
        ({"layer": -1}, "layer"),
        ({"layer": 1.5}, "layer"),
        ({"layer": float("inf")}, "layer"),
        ({"layer": float("nan")}, "layer"),
        ({"alpha": 7}, "alpha"),
        ({"alpha": "half"}, "alpha: 'half' is no number"),
        ({"alpha": "nan"}, "alpha"),
        ({"layer": "1.5"}, "layer"),
        ({"layer": "1" * 9999}, "layer"),
        ({"temperature": [1]}, "temperature"),
        ({"thumbnail": "huge"}, "thumbnail"),
        ({"tiles": "some"}, "tiles"),
        ({"tiles": "all", "more": "tiles=3"}, "tiles"),
        ({"vision_layer": 0}, "vision_layer"),
        ({"vision_layer": 1.5}, "vision_layer"),
        ({"max_new_tokens": 10**9}, "max_new_tokens"),
        ({"max_tiles": 1000}, "max_tiles"),
        ({"more": "alpha=0.3", "alpha": 0.5}, "alpha"),
        ({"more": "keep_ratio=0.1"}, "keep_ratio"),
        ({"more": "nonsense=1"}, "nonsense"),
        ({"more": "ranking=tile"}, "settings"),
        ({"more": "x" * 9999}, "more"),
        ({"question": "x" * (MAX_QUESTION + 1)}, "question"),
    ],
)
def test_wrong_values_are_one_line(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(PtpruneError) as refused:
        Form.read({**SENT, **changed}).pruner()
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("missing", "says"), [("picture", "picture"), ("question", "Ask")])
def test_a_picture_and_a_question_are_asked_for(missing: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Form.read({**SENT, missing: None}).prompt()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "a=__import__('os')",
        "1",
        "**{}",
        "a=1); f(b=2",
        "a=1, a=2",
        "a",
        "a=[" * 90,
        "=",
        "a=1 for a in b",
        "\0",
    ],
)
def test_further_settings_execute_nothing(text: str) -> None:
    with pytest.raises(UserError, match="ranking"):
        further(text)


def test_none_is_a_value_too() -> None:
    assert Form.read({**SENT, "more": "window=None"}).pruner().window is None


def test_further_settings_are_literals() -> None:
    assert further("") == {}
    assert further('window=None, coverage_bounds=(0.1, 0.5), ranking="image"') == {
        "window": None,
        "coverage_bounds": (0.1, 0.5),
        "ranking": "image",
    }


@pytest.mark.parametrize("method", METHODS)
def test_settings_without_a_control_are_named(method: str) -> None:
    names = names_of(method)
    assert "keep_ratio" not in names
    assert all(getattr(METHODS[method](), name) == value for name, value in names.items())
    assert method != "ptp" or set(OF_PTP).isdisjoint(names)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, False),
        ({"more": "window=4", "layer": "1"}, False),
        ({"tiles": "all"}, True),
        ({"vision_layer": "1"}, True),
        ({"more": "tile_batch=2"}, True),
        ({"more": 'left_out="drop"'}, True),
    ],
)
def test_whether_the_form_says_what_is_encoded(changed: dict[str, Any], told: bool) -> None:
    assert Form.read({**SENT, **changed}).tells_encoding() == told
