"""Answers are those of the library; visitors do not mix, wait for each other, can leave, and hear what is wrong."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ptprune.app.desk import DOING, PRUNED, UNPRUNED, Desk, Left, Word
from ptprune.app.form import Form
from ptprune.app.models import MOST, Models
from ptprune.app.trouble import NO_MEMORY, UNEXPECTED, said
from ptprune.app.visit import Answered, Visit, Visits
from ptprune.asking.answer import ask
from ptprune.asking.chat import make_prompt
from ptprune.errors import PtpruneError, UserError
from ptprune.pictures import open_picture
from tests.app.test_look import asked, check_same, true_report


def follow(desk: Desk, form: Form, visit: Visit) -> tuple[list[Word], Answered]:
    going, words = desk.answer(form, visit), []
    while True:
        try:
            words.append(next(going))
        except StopIteration as ended:
            return words, ended.value


def text_of(words: list[Word], arm: str) -> str:
    return "".join(word.text for word in words if word.of == arm).strip()


def test_answers_are_those_of_the_library(desk: Desk, form: Callable[..., Form]) -> None:
    one = form(keep_ratio=0.2)
    words, answered = follow(desk, one, visit := Visit())
    loaded = desk.models.get(one.model, None)
    assert one.picture is not None
    inputs = make_prompt(loaded.model, loaded.processor, [open_picture(one.picture)], one.question, {})
    alone = {
        name: ask(loaded.model, loaded.processor, inputs, arm, 5)
        for name, arm in ((UNPRUNED, None), (PRUNED, one.pruner()))
    }
    assert answered.unpruned is not None
    for name, answer in ((UNPRUNED, answered.unpruned), (PRUNED, answered.pruned)):
        assert (answer.text, answer.kv_bytes) == (alone[name].text, alone[name].kv_bytes)
        assert text_of(words, name) == answer.text  # all of it came while it was written
        assert all(answer.seconds[phase] > 0 for phase in ("vision", "prefill", "decode"))
    order = [word.of for word in words if word.of != DOING]
    assert order == sorted(order, reverse=True)  # first without pruning, then with: neither slows the other down
    check_same(visit.shown.report, true_report(desk, one))
    assert len([word for word in words if word.of == PRUNED]) > 1


def test_without_comparing_only_the_pruned_model_answers(desk: Desk, form: Callable[..., Form]) -> None:
    words, answered = follow(desk, form(compare=False), Visit())
    assert answered.unpruned is None
    assert text_of(words, UNPRUNED) == ""
    assert text_of(words, PRUNED) == answered.pruned.text


def test_visitors_do_not_mix(desk: Desk, form: Callable[..., Form], tmp_path: Path) -> None:
    """Eight at once, each with a picture, a question and a ratio of their own, asking and sliding."""
    forms = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (32 * (1 + number % 2), 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        forms.append(form(picture=path, question=f"w{10 + number}", keep_ratio=0.1 + 0.1 * number))
    visits = [Visit() for _ in forms]
    asked(desk, form())  # the model is there: all of them call the same one
    start = threading.Barrier(len(forms))

    def visitor(number: int) -> tuple[Answered, Any]:
        start.wait()
        _, answered = follow(desk, forms[number], visits[number])
        desk.choose(replace(forms[number], keep_ratio=0.5), visits[number])
        return answered, visits[number].shown.report

    with ThreadPoolExecutor(len(forms)) as pool:
        outcomes = list(pool.map(visitor, range(len(forms))))
    for one, visit, (answered, slid) in zip(forms, visits, outcomes, strict=True):
        alone = asked(desk, one).shown.answered
        assert alone.unpruned is not None
        assert answered.unpruned is not None
        assert (answered.pruned.text, answered.unpruned.text) == (alone.pruned.text, alone.unpruned.text)
        check_same(answered.report, alone.report)
        check_same(slid, true_report(desk, replace(one, keep_ratio=0.5)))
        assert visit.shown.form == replace(one, keep_ratio=0.5)
    model = desk.models.get(forms[0].model, None).model
    assert "forward" not in vars(model)  # no pruner is left on it
    assert "generate" not in vars(model)


def test_a_visitor_who_leaves_stops_the_answer(desk: Desk, form: Callable[..., Form]) -> None:
    visit = Visit()
    going = desk.answer(form(max_new_tokens=200, compare=False), visit)
    for word in going:
        if word.of == PRUNED:
            break
    visit.stop.set()
    with pytest.raises(Left):
        for _ in going:
            pass
    assert visit.shown is None
    words, answered = follow(desk, form(), visit)  # and can come back
    assert text_of(words, PRUNED) == answered.pruned.text


def test_a_new_question_stops_the_old_one(desk: Desk, form: Callable[..., Form]) -> None:
    visit = Visit()
    old = desk.answer(form(max_new_tokens=200, compare=False), visit)
    next(old)
    _, answered = follow(desk, form(question="w9"), visit)
    with pytest.raises(Left):
        for _ in old:
            pass
    assert visit.shown.answered is answered


def test_a_visitor_who_left_while_waiting_costs_nothing(
    desk: Desk, form: Callable[..., Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, done = threading.Event(), threading.Event()
    waiting = threading.Thread(target=lambda: desk.turns.run(lambda: (busy.set(), done.wait(10))))
    waiting.start()
    busy.wait(10)
    visit, outcome = Visit(), []

    def visitor() -> None:
        try:
            follow(desk, form(), visit)
        except Left:
            outcome.append("left")

    leaving = threading.Thread(target=visitor)
    stop = visit.stop
    leaving.start()
    while visit.stop is stop:
        pass
    visit.stop.set()
    monkeypatch.setattr(desk.models, "get", lambda *_: pytest.fail("the model was asked for"))
    done.set()
    leaving.join(10)
    waiting.join(10)
    assert outcome == ["left"]


def test_bad_pictures_are_one_line_without_the_servers_folders(
    desk: Desk, form: Callable[..., Form], tmp_path: Path
) -> None:
    bad = {"text.png": b"hello", "empty.jpg": b"", "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (2, 900)).save(tmp_path / "thin.png")
    for name in (*bad, "thin.png", "gone.png"):
        with pytest.raises(UserError) as refused:
            follow(desk, form(picture=tmp_path / name), Visit())
        told = said(refused.value)
        assert str(tmp_path) not in told
        assert "\n" not in told
        assert name in told or name == "gone.png"


@pytest.mark.parametrize(
    ("controls", "says"),
    [
        ({"question": "what is <IMG_CONTEXT> ?"}, "stands for a picture"),
        ({"max_new_tokens": 10**6}, "max_new_tokens"),
        ({"layer": 99}, "layer"),
        ({"model": "somebody/else"}, "offers"),
        ({"more": "positions='sideways'"}, "positions"),
    ],
)
def test_what_is_refused_is_said_and_computes_nothing(
    desk: Desk, form: Callable[..., Form], controls: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptprune.app.desk.ask", lambda *_, **__: pytest.fail("the model was called"))
    with pytest.raises(PtpruneError) as refused:
        follow(desk, form(**controls), Visit())
    assert says in said(refused.value)


def test_what_nobody_expected_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    assert said(RuntimeError("secret of the server")) == UNEXPECTED
    assert "secret of the server" in caplog.text
    assert said(torch.OutOfMemoryError("CUDA")) == said(MemoryError()) == NO_MEMORY
    assert "opencv" in said(ImportError("needs: pip install opencv"))


def test_models_are_those_that_are_offered(checkpoint: Path) -> None:
    models = Models(("ptprune-tiny",))
    with pytest.raises(UserError, match="offers ptprune-tiny"):
        models.get(str(checkpoint), None)
    assert not models.has(str(checkpoint))
    free = Models(any_name=True)
    assert free.get(str(checkpoint), 2).image_options == {"crop_to_patches": True, "max_patches": 2}
    assert free.get(str(checkpoint), None).image_options == {}
    assert free.get(str(checkpoint), None).model is free.get(str(checkpoint), 2).model
    for name in ("/nowhere/at/all", "../etc"):
        with pytest.raises(PtpruneError):
            free.get(name, None)


def test_old_models_are_let_go(checkpoint: Path, tmp_path: Path) -> None:
    models, names = Models(any_name=True), []
    for number in range(MOST + 1):
        (tmp_path / str(number)).symlink_to(checkpoint)
        names.append(str(tmp_path / str(number)))
        models.get(names[-1], None)
    assert [models.has(name) for name in names] == [False, *[True] * MOST]


def test_nothing_of_a_visitor_is_kept(desk: Desk, form: Callable[..., Form]) -> None:
    """Once a visit is forgotten, its picture, its evidence and its answers are garbage."""
    visits = Visits()
    visit = asked(desk, form(), visits.get("a"))
    desk.choose(form(layer=2), visit)
    assert len(visit.shown.look.evidence) == 1
    shown = visit.shown
    held = [weakref.ref(each) for each in (visit, shown, shown.drawing, shown.look.evidence[0], shown.report)]
    stop = visit.stop
    visits.forget("a")
    assert stop.is_set()
    desk.turns.run(lambda: None)  # the thread lets go of its last work
    del visit, shown
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_uploads_are_deleted_with_their_last_visitor(tmp_path: Path) -> None:
    visits = Visits()
    mine, ours = tmp_path / "mine.png", tmp_path / "ours.png"
    for file in (mine, ours):
        file.write_bytes(b"x")
    visits.get("a").files |= {mine, ours}
    visits.get("b").files |= {ours}
    visits.forget("a")
    assert (mine.exists(), ours.exists()) == (False, True)
    visits.forget("nobody")
    visits.clear()
    assert not ours.exists()
    assert len(visits) == 0


def test_the_longest_silent_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptprune.app.visit.MOST", 3)
    visits, now = Visits(), [0.0]
    monkeypatch.setattr("ptprune.app.visit.time.monotonic", lambda: now[0])
    first = visits.get("a")
    for name in "bc":
        visits.get(name)
    assert visits.get("a") is first
    visits.get("d")
    assert len(visits) == 3
    assert visits.get("a") is first  # "b" was silent for longer
    now[0] = 4000.0
    visits.get("e")
    assert len(visits) == 1
