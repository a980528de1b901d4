"""The method in one picture: every step that there was, in order, each with its part of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptprune import poster
from ptprune.draw import HATCH, token_boxes
from ptprune.errors import Refused
from ptprune.poster import Step, draw_pyramid
from ptprune.report import ImageReport
from tests.test_draw import gradient, partly, report_of, tiled

DOCS = Path(__file__).parents[1] / "docs"
IMAGE = gradient(296, 222)


def steps_of(report: ImageReport, monkeypatch: pytest.MonkeyPatch, *texts: str) -> dict[str, Step]:
    found: list[Step] = []
    compose = poster._compose
    monkeypatch.setattr(poster, "_compose", lambda steps: found.extend(steps) or compose(steps))
    monkeypatch.setattr(poster, "frame", lambda *arguments: None)
    draw_pyramid(IMAGE, report, *texts)
    return {step.title: step for step in found}


def test_steps_follow_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    report = replace(partly([0, 40]), scores={"token": torch.rand(112), "instruction": torch.rand(112)})
    steps = steps_of(report, monkeypatch, "why so?", "therefore")
    assert list(steps) == ["Picture", "Thumbnail", "Tiles", "Patches", "Tokens", "Question", "Kept", "What is left"]
    assert steps["Question"].caption == "why so?"
    assert "therefore" in steps["Kept"].caption
    assert steps["Tiles"].caption.startswith("5 of 6 ")
    assert "88 of 112 tokens" in steps["Patches"].caption
    fewer = steps_of(partly([0, 40]), monkeypatch)
    assert set(steps) - set(fewer) == {"Tokens", "Question"}


def test_each_step_shows_its_part_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    report = partly([0, 40, 79])
    steps, true = steps_of(report, monkeypatch), np.asarray(IMAGE)
    clear: dict[str, Sequence[int]] = {
        "Picture": range(112),
        "Tiles": [*range(16), *range(32, 96)],
        "Patches": report.encoded,
        "Kept": report.kept,
    }
    for title, tokens in clear.items():
        shown = np.asarray(steps[title].panel)
        for region in report.regions[:6]:
            for token, (left, top, right, bottom) in token_boxes(region, *IMAGE.size).items():
                same = (shown[top:bottom, left:right] == true[top:bottom, left:right]).all(axis=-1)
                assert same.all() == (token in tokens), (title, token)
    hatched = {title: (np.asarray(step.panel) == HATCH).all(axis=-1).mean() for title, step in steps.items()}
    assert hatched["Picture"] == hatched["Thumbnail"] == 0
    assert 0 < hatched["Tiles"] < hatched["Patches"] == hatched["Kept"]


def test_bars_are_as_long_as_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(partly(list(range(11))), monkeypatch)
    panel = np.asarray(steps["What is left"].panel)
    lengths = [(panel[round(n * 222 / 4) + 24] == poster.LINE).all(axis=-1).sum() for n in range(4)]
    assert lengths == [round(295 * share / 112) + 1 for share in (112, 96, 88, 11)]


def test_the_thumbnail_has_no_more_detail_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes that are narrower than the thumbnail's pixels become grey."""
    stripes = np.zeros((200, 300, 3), np.uint8)
    stripes[:, ::2] = 200
    monkeypatch.setattr("tests.test_poster.IMAGE", Image.fromarray(stripes))
    panel = np.asarray(steps_of(partly([0]), monkeypatch)["Thumbnail"].panel)
    middle = panel[:, panel.shape[1] // 2 - 20 : panel.shape[1] // 2 + 20]
    assert middle.max() - middle.min() < 90
    assert 60 < middle.mean() < 140


def test_a_picture_without_tiles_is_refused() -> None:
    with pytest.raises(Refused, match="thumbnail"):
        draw_pyramid(IMAGE, report_of(tiled(2, 3)))


def test_the_picture_in_the_documents_is_small() -> None:
    assert (DOCS / "pyramid.png").stat().st_size < 300_000
