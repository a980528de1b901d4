"""What the page shows: numbers as they were measured, text as text, and a program that does the same."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ptprune.app import parts
from ptprune.app.desk import Desk
from ptprune.app.examples import EXAMPLES
from ptprune.app.form import Form
from ptprune.app.models import Models
from ptprune.app.snippet import document, program
from ptprune.draw import draw_overlay
from ptprune.tiny.scenes import generate_scene
from tests.app.test_look import asked


def test_text_is_never_markup() -> None:
    evil = "<script>alert(1)</script>&"
    for html in (parts.note(evil), parts.note(evil, trouble=True), parts.answers(evil, evil), parts.small(evil)):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_trouble_is_announced() -> None:
    assert 'role="alert"' in parts.note("no", trouble=True)
    assert 'role="alert"' not in parts.note("fine")


def test_bars_are_as_long_as_the_numbers(desk: Desk, form: Callable[..., Form]) -> None:
    visit = asked(desk, form(keep_ratio=0.25))
    answered, html = visit.shown.answered, parts.bars(visit.shown.report, visit.shown.answered)
    tables = re.findall("<table>.*?</table>", html)
    assert len(tables) == 3
    rows = [re.findall(r"<tr><th>(\w+)</th>(.*?)<td>([^<]*)</td></tr>", table) for table in tables]
    widths = [[sum(map(float, re.findall(r"width:([\d.]+)%", bar))) for _, bar, _ in table] for table in rows]
    assert [name for table in rows for name, _, _ in table] == ["without", "with"] * 3
    assert [text for _, _, text in rows[0]] == ["28", "7"]
    assert widths[0] == pytest.approx([100, 25], abs=0.1)
    assert answered.unpruned is not None
    assert widths[1] == pytest.approx([100, 100 * answered.pruned.kv_bytes / answered.unpruned.kv_bytes], abs=0.1)
    times = [sum(arm.seconds[phase] for phase in parts.PHASES) for arm in (answered.unpruned, answered.pruned)]
    assert widths[2] == pytest.approx([100 * one / max(times) for one in times], abs=0.1)
    assert times == pytest.approx([arm.seconds["total"] for arm in (answered.unpruned, answered.pruned)])


def test_without_comparing_the_full_cache_is_known_and_the_time_is_not(desk: Desk, form: Callable[..., Form]) -> None:
    visit = asked(desk, form(compare=False))
    compared = asked(desk, form()).shown.answered
    assert compared.unpruned is not None
    assert visit.shown.answered.pruned.full_kv_bytes == compared.unpruned.kv_bytes
    assert re.findall(r"<th>(\w+)</th>", parts.bars(visit.shown.report, visit.shown.answered)) == [
        "without",
        "with",
    ] * 2 + ["with"]


def test_budgets_lie_as_the_tiles_do(desk: Desk, form: Callable[..., Form]) -> None:
    report = asked(desk, form(compare=False, levels=("tiles", "tokens"))).shown.report
    [image] = report.images
    tables = re.findall("<table.*?</table>", parts.budgets(image))
    cells = [re.findall(r">(\d+/\d+)</td>", row) for row in re.findall("<tr>.*?</tr>", tables[0])]
    wanted = [f"{region.budget}/{len(region.indices)}" for region in image.regions]
    assert cells == [wanted[:3], wanted[3:6]]
    assert re.findall(r">(\d+/\d+)</td>", tables[1]) == [wanted[6]]
    for region in image.regions[:6]:
        assert f"saliency {region.saliency:.3g}" in tables[0]


def test_pictures_are_those_of_the_library(desk: Desk, form: Callable[..., Form], picture: Path) -> None:
    report = asked(desk, form(compare=False)).shown.report
    drawn = draw_overlay(Image.open(picture), report.images[0])
    data = parts.picture_data(drawn, "PNG")
    assert data.startswith("data:image/png;base64,")
    shown = Image.open(io.BytesIO(b64decode(data.partition(",")[2])))
    assert shown.tobytes() == drawn.tobytes()
    html = parts.heat_maps(Image.open(picture), report.images[0], {"token": "a < b"})
    assert html.count("<img") == 3
    assert html.count("<figcaption>") == html.count("<figcaption>a &lt; b</figcaption>") == 1
    random = asked(desk, form(compare=False, method="random")).shown.report
    assert "<img" not in parts.heat_maps(Image.open(picture), random.images[0], {})


@pytest.mark.parametrize(
    "controls",
    [
        {"keep_ratio": 0.2},
        {"tiles": None},
        {"keep_ratio": 0.4, "levels": ("tokens",), "more": 'ranking="image"', "layer": 3, "max_tiles": 4},
        {"method": "fastv", "question": "w5 \"w6' {w7} \\ w8", "max_new_tokens": 3},
    ],
    ids=["plain", "nothing told of tiles", "many settings", "another method"],
)
def test_the_program_gives_the_pages_answer(
    desk: Desk, form: Callable[..., Form], controls: dict, picture: Path
) -> None:
    """Run as it stands, by a Python of its own, in the folder where the picture lies."""
    one = form(**controls, compare=False)
    visit = asked(desk, one)
    assert ("loaded.sparing(" in program(one)) == (one.tiles is None)
    ran = subprocess.run(
        [sys.executable, "-c", program(one)], cwd=picture.parent, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [*visit.shown.answered.pruned.text.splitlines(), str(visit.shown.answered.report)]


def test_json_is_that_of_the_command_and_follows_the_slider(desk: Desk, form: Callable[..., Form]) -> None:
    visit = asked(desk, form())
    shown = json.loads(json.dumps(document(visit.shown)))
    assert shown["answer"] == visit.shown.answered.pruned.text
    assert shown["unpruned"]["seconds"]["select"] == 0
    assert shown["settings"] == {"keep_ratio": 0.5, "layer": 1}
    assert shown["visual_tokens"] == {"before": 28, "after": 14}
    assert len(shown["kept"]) == 14
    assert set(shown["scores"]) == {"token", "instruction", "fused"}
    keys = set(shown)
    desk.choose(form(keep_ratio=0.25), visit)
    slid = json.loads(json.dumps(document(visit.shown)))
    assert keys - set(slid) == {"answer", "unpruned", "new_tokens", "seconds", "kv_bytes"}
    assert slid["settings"] == {"keep_ratio": 0.25, "layer": 1}
    assert len(slid["kept"]) == slid["visual_tokens"]["after"] == 7
    assert slid["sequence_length"]["after"] == shown["sequence_length"]["after"] - 7
    assert [set(region) for region in slid["regions"]] == [set(region) for region in shown["regions"]]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.name)
def test_examples_are_scenes_of_the_shipped_world(example) -> None:
    drawn = generate_scene(example.split, example.seed).image
    shipped = Image.open(example.path)
    assert shipped.tobytes() == drawn.tobytes()
    assert example.path.stat().st_size < 100_000


def test_examples_can_be_answered() -> None:
    desk = Desk(Models())
    visit = asked(desk, Form(EXAMPLES[0].path, EXAMPLES[0].question, "ptprune-tiny"))
    assert visit.shown.answered.pruned.text
    desk.turns.close()
