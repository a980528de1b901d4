"""The heat maps: brighter is more important, each token at its own place, one scale for an image, all levels there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ptprune.draw import HATCH, draw_overlay
from ptprune.errors import Refused
from ptprune.explain import RAMP, draw_explanation, draw_heat_map, heat, levels
from ptprune.report import ImageReport
from tests.test_draw import LAYOUTS, MARGIN, gradient, partly, report_of, thumbnail, tiled

TOP = MARGIN + 26  # of the panels
PLAIN = Image.new("RGB", (480, 360), (0, 0, 0))


def scored(saliencies: list[float | None] | None = None, **scores: torch.Tensor) -> ImageReport:
    """2 x 3 tiles of 16 tokens and a thumbnail."""
    report = report_of([*tiled(2, 3), thumbnail(96)])
    given = saliencies or [None] * 7
    regions = [replace(one, saliency=number) for one, number in zip(report.regions, given, strict=True)]
    return replace(report, regions=regions, scores=scores)


def brightness(sheet: Image.Image, row: int, column: int, cell: tuple[int, int]) -> float:
    """Of the middle of a token of a tile: all tiles are 160 x 180 pixels, with 4 x 4 tokens."""
    x = MARGIN + 160 * column + 40 * cell[1] + 20
    y = TOP + 180 * row + 45 * cell[0] + 24
    return float(np.asarray(sheet.convert("L"))[y, x])


def test_the_ramp_gets_brighter() -> None:
    shown = Image.fromarray(heat(np.linspace(0, 1, 256))[None]).convert("L")
    assert (np.diff(np.asarray(shown)[0].astype(int)) >= 0).all()
    assert (heat(np.array([0.0, 1.0])) == RAMP[[0, -1]]).all()


def test_tokens_are_as_bright_as_their_scores_rank() -> None:
    scores = torch.randperm(112, generator=torch.Generator().manual_seed(0)).float()
    sheet = draw_heat_map(PLAIN, scored(token=scores), "token")
    seen = [
        brightness(sheet, row, column, cell)
        for row, column in np.ndindex(2, 3)
        for cell in ((1, 1), (2, 2), (3, 3))  # the corners have borders
    ]
    truth = [float(scores[16 * (3 * row + column) + 4 * c + c]) for row, column in np.ndindex(2, 3) for c in (1, 2, 3)]
    assert np.argsort(seen).tolist() == np.argsort(truth).tolist()


def test_a_tile_has_its_saliency_and_the_thumbnail_none() -> None:
    report = scored([0.1, 0.5, 0.2, 0.9, 0.3, 0.4, 77.0])
    assert levels(report) == ["region"]
    sheet = draw_heat_map(PLAIN, report, "region")
    seen = [brightness(sheet, row, column, (2, 2)) for row, column in np.ndindex(2, 3)]
    assert np.argsort(seen).tolist() == np.argsort([0.1, 0.5, 0.2, 0.9, 0.3, 0.4]).tolist()
    assert seen[3] > 150  # the thumbnail's 77 is not on the scale
    other = draw_heat_map(PLAIN, scored([0.1, 0.5, 0.2, 0.9, 0.3, 0.4, -9.0]), "region")
    assert sheet.tobytes() == other.tobytes()


def test_levels_are_those_that_were_computed() -> None:
    even = torch.linspace(0, 1, 112)
    assert levels(scored()) == []
    assert levels(scored([0.5] * 7, fused=even, token=even, other=even)) == ["region", "token", "fused"]
    assert levels(scored(token=torch.full((112,), torch.nan))) == []
    with pytest.raises(Refused, match="'instruction'.*token"):
        draw_heat_map(PLAIN, scored(token=even), "instruction")


def test_what_was_not_scored_is_flat_and_changes_no_other_token() -> None:
    scores = torch.linspace(0, 1, 112)
    some = scores.clone()
    some[16:32] = torch.nan
    whole, part = (np.asarray(draw_heat_map(PLAIN, scored(token=each), "token")) for each in (scores, some))
    different = np.nonzero((whole != part).any(axis=-1))
    assert different[1].min() >= MARGIN + 160
    assert different[1].max() < MARGIN + 320
    assert different[0].max() < TOP + 180


def test_equal_scores_are_drawn() -> None:
    sheet = draw_heat_map(PLAIN, scored(token=torch.ones(112)), "token")
    assert len({brightness(sheet, row, column, (1, 1)) for row, column in np.ndindex(2, 3)}) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout(name: str) -> None:
    report = report_of(LAYOUTS[name])
    report = replace(report, scores={"token": torch.arange(report.num_tokens).float()})
    figure = draw_explanation(gradient(150, 109), report)
    assert figure.height > draw_overlay(gradient(150, 109), report).height


def test_the_figure_holds_the_overlay_and_every_level() -> None:
    even = torch.linspace(0, 1, 112)
    report = scored([0.1, 0.5, 0.2, 0.9, 0.3, 0.4, 1.0], token=even, instruction=even.flip(0), fused=even)
    image = gradient(480, 360)
    figure, overlay = draw_explanation(image, report), draw_overlay(image, report)
    assert figure.crop((0, 0, *overlay.size)).tobytes() == overlay.tobytes()
    maps = [draw_heat_map(image, report, level) for level in ("region", "token", "instruction", "fused")]
    column = max(one.width for one in maps)
    below = overlay.height
    for number, one in enumerate(maps):
        left, top = number % 2 * column, below + number // 2 * maps[0].height
        assert figure.crop((left, top, left + one.width, top + one.height)).tobytes() == one.tobytes()


def test_a_method_without_scores_says_so() -> None:
    image = gradient(480, 360)
    assert draw_explanation(image, scored()).height > draw_overlay(image, scored()).height


def test_tile_scores_are_a_level_and_what_was_not_encoded_has_no_token_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptprune.explain.frame", lambda *arguments: None)
    report = replace(partly([0, 40]), scores={"token": torch.linspace(1, 2, 112)})
    assert levels(report) == ["tile", "token"]
    sheet = np.asarray(draw_heat_map(PLAIN, report, "tile"))
    hatched = (sheet == HATCH).all(axis=-1)
    assert not hatched[:TOP].any()
    columns = np.nonzero(hatched.any(axis=0))[0]  # the tile that was left out, and not the patches of another
    assert (columns.min(), columns.max()) == (MARGIN + 160, MARGIN + 319)
    assert not hatched[TOP + 180 :].any()
    low, high = (brightness(Image.fromarray(sheet), 0, column, (2, 2)) for column in (0, 2))
    assert low < high
    # scores of what was not encoded, zeros, neither stretch the scale nor are drawn
    zeros = report.scores["token"].clone()
    zeros[16:32] = 0
    other = replace(report, scores={"token": zeros})
    assert draw_heat_map(PLAIN, report, "token").tobytes() == draw_heat_map(PLAIN, other, "token").tobytes()
