"""Choosing again from what was encoded is what a real pass with those settings would do, and encodes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ptprune.app.desk import Desk, NothingAsked
from ptprune.app.form import Form
from ptprune.app.look import remembering
from ptprune.app.visit import Visit
from ptprune.asking.answer import ask
from ptprune.asking.chat import make_prompt
from ptprune.errors import PtpruneError
from ptprune.methods import METHODS, PyramidTokenPruning
from ptprune.pictures import open_picture
from ptprune.report import PruningReport


def asked(desk: Desk, form: Form, visit: Visit | None = None) -> Visit:
    visit = visit or Visit()
    for _ in desk.answer(form, visit):
        pass
    return visit


def true_report(desk: Desk, form: Form) -> PruningReport:
    """What the same settings keep in a pass of their own."""
    assert form.picture is not None
    loaded = desk.models.get(form.model, form.max_tiles)
    inputs = make_prompt(
        loaded.model, loaded.processor, [open_picture(form.picture)], form.question, loaded.image_options
    )
    pruner = form.pruner() if form.tells_encoding() else loaded.sparing(form.pruner())
    ask(loaded.model, loaded.processor, inputs, pruner, 1)
    assert pruner.report is not None
    return pruner.report


def check_same(shown: PruningReport | None, truth: PruningReport) -> None:
    assert shown is not None
    one, other = shown.to_dict(), truth.to_dict()
    for each, image in zip(one["images"], other["images"], strict=True):
        scores = each.pop("scores"), image.pop("scores")
        for name in scores[1]:  # a pass that keeps all scores nothing
            torch.testing.assert_close(torch.tensor(scores[0][name]), torch.tensor(scores[1][name]))
        for region, same in zip(each["regions"], image["regions"], strict=True):
            saliencies = region.pop("saliency"), same.pop("saliency")
            assert saliencies[1] is None or saliencies[0] == pytest.approx(saliencies[1])
    assert one == other


def count_encoded(desk: Desk, form: Form, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the model's vision tower runs."""
    calls: list[int] = []
    tower = desk.models.get(form.model, None).model.model.vision_tower
    original = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    return calls


FREE: list[dict[str, Any]] = [
    {"keep_ratio": 0.25},
    {"keep_ratio": 0.05, "more": "first_ratio=0"},
    {"keep_ratio": 0.9},
    {"keep_ratio": 1.0},
    {"keep_ratio": 0.3, "alpha": 0.9},
    {"temperature": 3.0},
    {"thumbnail": "whole"},
    {"levels": ("tokens", "question")},
    {"levels": ("tiles", "tokens")},
    {"levels": ("tiles", "question")},
    {"more": 'ranking="image"'},
    {"more": "coverage=0.6"},
    {"more": 'choose="top"'},
    {"more": 'choose="coverage", power=0.25, floor=1'},
    {"more": 'positions="compact"'},
]


@pytest.mark.parametrize("changed", FREE, ids=str)
def test_choosing_again_is_exact_and_encodes_nothing(
    desk: Desk, form: Callable[..., Form], changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = asked(desk, form(compare=False))
    calls = count_encoded(desk, form(), monkeypatch)
    before = visit.shown.report
    assert not desk.choose(form(**changed), visit)
    assert calls == []
    assert visit.shown.report is not before
    assert visit.shown.form == form(**changed)
    check_same(visit.shown.report, true_report(desk, form(**changed)))
    assert calls == [1]  # by the pass that it is compared with


AGAIN: list[dict[str, Any]] = [
    {"layer": 2},
    {"layer": 0},
    {"method": "fastv"},
    {"more": 'token="received-attention"'},
    {"more": "window=3"},
]


@pytest.mark.parametrize("changed", AGAIN, ids=str)
def test_settings_that_see_something_else_encode_once(
    desk: Desk, form: Callable[..., Form], changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = asked(desk, form(compare=False))
    calls = count_encoded(desk, form(), monkeypatch)
    assert desk.choose(form(**changed), visit)
    assert calls == [1]
    check_same(visit.shown.report, true_report(desk, form(**changed)))
    calls.clear()
    assert not desk.choose(form(**changed, keep_ratio=0.3), visit)
    assert calls == []
    check_same(visit.shown.report, true_report(desk, form(**changed, keep_ratio=0.3)))


def test_with_two_cuts_the_first_move_encodes(
    desk: Desk, form: Callable[..., Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below ``first_ratio``; then moves are free while the first cut leaves the same, and back."""
    visit = asked(desk, form(compare=False))
    calls = count_encoded(desk, form(), monkeypatch)
    moves = [
        (0.2, {}, 1),
        (0.05, {}, 0),
        (0.5, {}, 0),
        (0.1, {}, 0),
        (0.1, {"alpha": 0.9}, 1),
        (0.2, {"alpha": 0.9}, 0),
    ]
    for ratio, changed, encoded in moves:
        calls.clear()
        one = form(keep_ratio=ratio, **changed)
        assert desk.choose(one, visit) == bool(encoded)
        assert len(calls) == encoded
        check_same(visit.shown.report, true_report(desk, one))


BACKGROUND: list[dict[str, Any]] = [
    {"tiles": "salient", "more": 'tile_threshold=1.0, left_out="background"'},
    {"tiles": None, "more": 'tiles=2, tile_score="detail-attention", left_out="background", choose="top"'},
    {"tiles": None, "more": 'tiles=2, tile_score="random", left_out="background", tile_batch=1'},
]


@pytest.mark.parametrize("tiles", BACKGROUND, ids=str)
def test_with_tiles_as_background_the_first_move_encodes(
    desk: Desk, form: Callable[..., Form], tiles: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = asked(desk, form(compare=False))
    assert desk.choose(form(**tiles), visit)
    calls = count_encoded(desk, form(), monkeypatch)
    for ratio in (0.3, 0.9, 1.0, 0.5):
        calls.clear()
        assert not desk.choose(form(**tiles, keep_ratio=ratio), visit)
        assert calls == []
        check_same(visit.shown.report, true_report(desk, form(**tiles, keep_ratio=ratio)))
        before, after = visit.shown.report.encoded_tokens
        assert after < before
    assert desk.choose(form(), visit)


def test_unless_told_salient_tiles_are_encoded(
    desk: Desk, form: Callable[..., Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``ptprune run`` does. Moves of the slider are free, but for the one that keeps everything."""
    visit = asked(desk, form(tiles=None, compare=False))
    assert visit.shown.pruner == PyramidTokenPruning(layer=1, tiles="salient", left_out="background")
    calls = count_encoded(desk, form(), monkeypatch)
    for ratio in (0.3, 0.9):
        calls.clear()
        one = form(tiles=None, keep_ratio=ratio)
        assert not desk.choose(one, visit)
        assert calls == []
        assert visit.shown.pruner.keep_ratio == ratio
        check_same(visit.shown.report, true_report(desk, one))
    assert desk.choose(form(tiles=None, keep_ratio=1.0), visit)
    assert visit.shown.pruner == PyramidTokenPruning(keep_ratio=1.0, layer=1)


TOWER: list[dict[str, Any]] = [
    {"tiles": "salient", "more": "tile_threshold=1.0"},
    {"vision_layer": 1},
    {"tiles": None, "more": "tiles=2"},
]


@pytest.mark.parametrize("tower", TOWER, ids=str)
def test_with_tokens_that_are_not_there_every_move_encodes(
    desk: Desk, form: Callable[..., Form], tower: dict[str, Any]
) -> None:
    """What is left of the picture decides what can be kept of it, so that the report is that of a new pass."""
    visit = asked(desk, form(compare=False))
    for ratio in (0.5, 0.2, 1.0):
        assert desk.choose(form(**tower, keep_ratio=ratio), visit)
        check_same(visit.shown.report, true_report(desk, form(**tower, keep_ratio=ratio)))
        before, after = visit.shown.report.encoded_tokens
        assert after < before or (ratio == 1 and "vision_layer" in tower)


def test_with_every_token_kept_the_first_move_encodes(
    desk: Desk, form: Callable[..., Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass with ratio 1 looks at nothing, so there is nothing to choose from yet; the next move is free."""
    visit = asked(desk, form(keep_ratio=1.0, compare=False))
    calls = count_encoded(desk, form(), monkeypatch)
    assert desk.choose(form(), visit)
    check_same(visit.shown.report, true_report(desk, form()))
    calls.clear()
    for ratio in (1.0, 0.3):
        assert not desk.choose(form(keep_ratio=ratio), visit)
        assert calls == []


STAGED = ("pyramiddrop", "tops")


@pytest.mark.parametrize("method", METHODS)
def test_every_method(desk: Desk, form: Callable[..., Form], method: str) -> None:
    usual: dict[str, Any] = {"method": method, "layer": 1 if method in STAGED else None}
    visit = asked(desk, form(**usual, compare=False))
    for ratio in (0.25, 0.75):
        one = form(**usual, keep_ratio=ratio)
        again = desk.choose(one, visit)
        assert again == (method in STAGED)  # which chooses in stages, each from what the last one left
        check_same(visit.shown.report, true_report(desk, one))


def test_unknown_settings_encode_again(desk: Desk, form: Callable[..., Form]) -> None:
    """A setting that nobody told this page about may change what is seen, with the ratio or by itself."""
    plain, special = form(method="vispruner", compare=False), form(method="vispruner", more="important_ratio=0.9")
    look = asked(desk, plain).shown.look
    assert look.serves(replace(plain, keep_ratio=0.1).pruner())
    assert not look.serves(special.pruner())
    look = asked(desk, replace(special, compare=False)).shown.look
    assert not look.serves(special.pruner())
    assert not look.serves(form().pruner())


def test_another_question_or_picture_has_to_be_asked_first(desk: Desk, form: Callable[..., Form]) -> None:
    visit = asked(desk, form(compare=False))
    report = visit.shown.report
    for other in (form(question="w9"), form(max_tiles=2)):
        with pytest.raises(NothingAsked):
            desk.choose(other, visit)
    with pytest.raises(NothingAsked):
        desk.choose(form(), Visit())
    assert visit.shown.report is report


def test_refused_settings_leave_what_is_shown(desk: Desk, form: Callable[..., Form]) -> None:
    visit = asked(desk, form(compare=False))
    kept = visit.shown.report, visit.shown.form
    for wrong in ({"keep_ratio": 0.0}, {"layer": 99}, {"more": "nothing=1"}, {"levels": ()}):
        with pytest.raises(PtpruneError):
            desk.choose(form(**wrong), visit)
        assert (visit.shown.report, visit.shown.form) == kept


def test_a_remembering_pruner_does_what_the_pruner_does(form: Callable[..., Form]) -> None:
    pruner = form(keep_ratio=0.3, more='ranking="image"').pruner()
    first, second = [], []
    one, other = remembering(pruner, first), remembering(pruner, second, always=True)
    assert type(one) is type(other)  # classes are never forgotten, so there is one a method
    assert isinstance(one, type(pruner))
    assert one.__getstate__() == pruner.__getstate__()
    assert replace(pruner, keep_ratio=1.0).keeps_all()
    assert remembering(replace(pruner, keep_ratio=1.0), []).keeps_all()
    assert not remembering(replace(pruner, keep_ratio=1.0), [], always=True).keeps_all()
    assert first == second == []
