"""The page in a real browser: upload, ask, slide, compare, bad files, two visitors at once, a phone in the dark."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageStat

from ptprune import PyramidTokenPruning
from ptprune.app.examples import EXAMPLES
from ptprune.app.page import uploaded
from ptprune.asking.answer import run_document
from ptprune.asking.loaded import LoadedModel
from ptprune.checkpoints import Checkpoint
from ptprune.errors import UserError
from ptprune.pictures import open_picture

from .conftest import Server
from .steps import QUESTION, ROOT, SCENE, SHOTS, answered, ask, budget, slide, upload

Visitor = Callable[..., Any]


@pytest.fixture(scope="session")
def truth() -> Callable[..., dict[str, Any]]:
    """What the library says to a picture and a question, with all tokens and with some."""
    loaded = LoadedModel.load(Checkpoint.find(None), torch.device("cpu"), "auto")

    def say(picture: Path, question: str, **settings: Any) -> dict[str, Any]:
        pruner = loaded.sparing(PyramidTokenPruning(**settings))
        document, _ = run_document(loaded, pruner, [open_picture(picture)], question, 64, compare=False)
        return document

    return say


def shoot(page: Any, name: str) -> Path:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
    return SHOTS / f"{name}.png"


def test_upload_ask_and_slide(visitor: Visitor, truth: Callable[..., dict[str, Any]]) -> None:
    page = visitor()
    ask(page, SCENE, QUESTION)
    answered(page)
    half = truth(SCENE, QUESTION)
    assert page.inner_text(".ptp-pruned .ptp-answer") == half["answer"]
    assert page.inner_text(".ptp-unpruned .ptp-answer") == truth(SCENE, QUESTION, keep_ratio=1)["answer"]
    assert budget(page) == half["visual_tokens"]["after"] == 104
    assert page.locator("#maps img").count() == 4  # tiles to encode, tokens, question, both together
    assert page.locator("#bars table").count() == 3
    shown = page.get_attribute("#kept img", "src")
    # below a quarter a second cut looks at a later layer, which half the tokens tell nothing of
    for ratio, how in ((0.1, "encoded again"), (0.2, "encoded before"), (0.75, "encoded before")):
        slide(page, ratio)
        assert how in page.inner_text("#note .ptp-note")
        assert budget(page) == round(208 * ratio)
    assert page.get_attribute("#kept img", "src") != shown
    slid = truth(SCENE, QUESTION, keep_ratio=0.75)
    cells = page.locator(".ptp-budgets td").all_inner_texts()
    assert cells == [f"{region['budget']}/{region['tokens']}" for region in slid["regions"]]
    page.click("#program button")
    assert "keep_ratio=0.75" in page.inner_text("#code")
    shoot(page, "wide")


def test_without_comparing(visitor: Visitor) -> None:
    page = visitor()
    page.uncheck("#compare input")
    ask(page, SCENE, QUESTION)
    answered(page)
    assert page.inner_text(".ptp-unpruned .ptp-answer") == ""
    assert page.inner_text(".ptp-pruned .ptp-answer") != ""


def test_only_salient_tiles_are_encoded(visitor: Visitor, truth: Callable[..., dict[str, Any]]) -> None:
    """Chosen where the other settings are; every move of the slider encodes again, and says so."""
    page = visitor()
    ask(page, SCENE, QUESTION)
    answered(page)
    page.click("#more-settings button")
    page.click("#tiles input")
    page.locator("ul[role=listbox] li", has_text="others dropped").click()
    page.wait_for_function("document.querySelector('#note .ptp-note').innerText.includes('encoded again')")
    slide(page, 0.1)
    assert "encoded again" in page.inner_text("#note .ptp-note")
    slid = truth(SCENE, QUESTION, keep_ratio=0.1, tiles="salient")
    assert slid["encoded_tiles"]["after"] < slid["encoded_tiles"]["before"]
    cells = page.locator(".ptp-budgets td").all_inner_texts()
    assert cells == [f"{region['budget']}/{region['tokens']}" for region in slid["regions"]]
    assert page.locator("#maps img").count() == 4  # tiles to encode, tokens, question, both together
    page.click("#program button")
    [line] = [line for line in page.inner_text("#code").splitlines() if line.startswith("pruner =")]
    assert line == "pruner = PyramidTokenPruning(tiles='salient', keep_ratio=0.1)", "and nothing that was left empty"


def test_another_method_encodes_again(visitor: Visitor) -> None:
    page = visitor()
    ask(page, SCENE, QUESTION)
    answered(page)
    page.click("#method input")
    page.locator("ul[role=listbox] li", has_text="fastv").click()
    page.wait_for_function("document.querySelector('#note .ptp-note').innerText.includes('encoded again')")
    page.wait_for_selector("#levels", state="hidden")
    assert page.locator("#maps img").count() == 2  # FastV looks at the question alone, the encoder at tiles
    slide(page, 0.25)
    assert "encoded before" in page.inner_text("#note .ptp-note")


def test_an_example_is_one_click(visitor: Visitor, truth: Callable[..., dict[str, Any]]) -> None:
    page = visitor()
    page.locator("#examples tr, .gallery-item, tr.tr-body").filter(has_text=EXAMPLES[0].question).first.click()
    page.wait_for_selector("#picture img")
    page.click("#ask")
    answered(page)
    assert page.inner_text(".ptp-pruned .ptp-answer") == truth(EXAMPLES[0].path, EXAMPLES[0].question)["answer"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.png", b"these are no pixels"), ("cut.png", SCENE.read_bytes()[:20_000]), ("empty.jpg", b"")],
)
def test_bad_files_are_one_friendly_line(visitor: Visitor, tmp_path: Path, name: str, content: bytes) -> None:
    page = visitor()
    (tmp_path / name).write_bytes(content)
    upload(page, tmp_path / name)
    page.wait_for_selector("#note .ptp-trouble")
    told = page.inner_text("#note .ptp-note")
    assert name in told
    assert "/" not in told
    shoot(page, "trouble")
    ask(page, SCENE, QUESTION)  # and the page works on
    answered(page)
    assert page.locator(".ptp-trouble").count() == 0


@pytest.mark.parametrize(("missing", "says"), [("picture", "Choose a picture"), ("question", "Ask something")])
def test_what_is_missing_is_asked_for(visitor: Visitor, missing: str, says: str) -> None:
    page = visitor()
    if missing == "question":
        upload(page, SCENE)
    page.click("#ask")
    page.wait_for_selector("#note .ptp-trouble")
    assert says in page.inner_text("#note .ptp-note")


def test_settings_that_are_refused_leave_what_is_shown(visitor: Visitor) -> None:
    page = visitor()
    ask(page, SCENE, QUESTION)
    answered(page)
    for level in ("tokens", "question"):
        page.locator("#levels label", has_text=level).click()
    page.wait_for_selector("#note .ptp-trouble")
    assert "levels" in page.inner_text("#note .ptp-note")
    assert budget(page) == 104


def test_two_visitors_at_once(visitor: Visitor, truth: Callable[..., dict[str, Any]]) -> None:
    """Both ask before either is answered; each gets their own answer and slides their own picture."""
    pages, asked = [visitor(), visitor()], [(SCENE, QUESTION), (EXAMPLES[1].path, EXAMPLES[1].question)]
    for page, (picture, question) in zip(pages, asked, strict=True):
        ask(page, picture, question)
    for page in pages:
        answered(page)
    for page, ratio in zip(pages, (0.2, 0.6), strict=True):
        slide(page, ratio)
    for page, (picture, question), ratio in zip(pages, asked, (0.2, 0.6), strict=True):
        assert page.inner_text(".ptp-pruned .ptp-answer") == truth(picture, question)["answer"]
        regions = truth(picture, question, keep_ratio=ratio)["regions"]
        cells = page.locator(".ptp-budgets td").all_inner_texts()
        assert cells == [f"{region['budget']}/{region['tokens']}" for region in regions]


def test_an_example_outlives_those_who_uploaded_it(visitor: Visitor) -> None:
    page = visitor()
    for each in EXAMPLES:
        upload(page, each.path)
        page.wait_for_timeout(500)
    page.context.close()
    page = visitor()
    page.wait_for_timeout(20_000)  # the server notices late who left
    page.reload()
    loaded = "[...document.querySelectorAll('table img')].map(image => image.complete && image.naturalWidth > 0)"
    page.wait_for_selector("table img")
    page.wait_for_timeout(1000)
    assert page.evaluate(loaded) == [True] * len(EXAMPLES)


def test_what_is_saved(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor()
    ask(page, SCENE, QUESTION)
    answered(page)
    for name, file in (("kept", "ptprune-kept.png"), ("why", "ptprune-why.png"), ("json", "ptprune.json")):
        with page.expect_download() as saving:
            page.click(f"#save-{name}")
        assert saving.value.suggested_filename == file
        saving.value.save_as(tmp_path / file)
    assert Image.open(tmp_path / "ptprune-why.png").height > Image.open(tmp_path / "ptprune-kept.png").height > 300
    document = json.loads((tmp_path / "ptprune.json").read_text())
    assert document["visual_tokens"] == {"before": 208, "after": 104}
    assert document["answer"] == page.inner_text(".ptp-pruned .ptp-answer")
    assert len(document["kept"]) == 104


def test_nothing_is_kept_of_a_visitor_who_left(visitor: Visitor, server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "only-mine.png"
    Image.effect_noise((200, 100), 50).convert("RGB").save(mine)
    page = visitor()
    ask(page, mine, QUESTION)
    answered(page)
    assert mine.name in server.files()
    before = server.files()
    slide(page, 0.2)
    assert server.files() == before  # what is drawn is never written
    page.context.close()
    pause = threading.Event()
    for _ in range(120):  # the server notices at its next sign of life
        if mine.name not in server.files():
            break
        pause.wait(0.5)
    assert mine.name not in server.files()


def test_on_a_phone_in_the_dark(visitor: Visitor) -> None:
    page = visitor(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    ask(page, SCENE, QUESTION)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    boxes = {name: page.locator(f"#{name}").bounding_box() for name in ("ask", "answers", "kept", "settings")}
    assert boxes["ask"]["y"] < boxes["answers"]["y"] < boxes["kept"]["y"] < boxes["settings"]["y"]
    assert all(box["width"] <= 390 for box in boxes.values())
    shot = Image.open(shoot(page, "phone")).convert("L")
    assert ImageStat.Stat(shot).median[0] < 60
    light = visitor(viewport={"width": 390, "height": 844}, color_scheme="light")
    assert ImageStat.Stat(Image.open(shoot(light, "light")).convert("L")).median[0] > 200


def test_programs_find_no_door(server: Server, tmp_path: Path) -> None:
    """The page is for people: no named endpoint, and no file of the server passes for an upload."""
    with urllib.request.urlopen(f"{server.address}/gradio_api/info") as answer:
        info = json.load(answer)
    assert info["named_endpoints"] == {}
    assert uploaded(None, tmp_path) is None
    inside = tmp_path / "hash/cat.png"
    assert uploaded({"path": str(inside)}, tmp_path) == inside
    for sent in ({"path": "/etc/passwd"}, {"path": f"{tmp_path}/../x.png"}, "cat.png", {"url": "http://a"}, [1]):
        with pytest.raises(UserError, match="upload"):
            uploaded(sent, tmp_path)


def test_a_port_that_is_taken_is_one_line(server: Server) -> None:
    port = server.address.rpartition(":")[2]
    ran = subprocess.run(
        [sys.executable, "-m", "ptprune", "app", "--port", port], capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert port in ran.stderr


def test_the_space_is_this_page() -> None:
    """The card names the version of Gradio that is tested, and its file starts a page that others can reach."""
    card = (ROOT / "space/README.md").read_text()
    assert f"sdk_version: {version('gradio')}\n" in card
    assert re.search(r"^app_file: app\.py$", card, flags=re.MULTILINE)
    port = str(free_port())
    source = (ROOT / "space/app.py").read_text().replace("port=7860", f"port={port}")
    process = subprocess.Popen([sys.executable, "-c", source], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(240):
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as answer:
                    config = json.load(answer)
                break
            except OSError:
                time.sleep(0.5)
        models = [each["props"] for each in config["components"] if each["props"].get("elem_id") == "model"]
        assert [(each["allow_custom_value"], each["interactive"]) for each in models] == [(False, False)]
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
