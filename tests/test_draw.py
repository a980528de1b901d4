"""The overlay's pixels: kept tokens unchanged, dropped ones darker, each at its own place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ptprune.draw import BACKGROUND, EDGE, MARGIN, MIN_TILE, draw_overlay
from ptprune.report import ImageReport, RegionReport

SIDE = 4  # tokens a side
TOKENS = SIDE * SIDE


def make_report(rows: int, columns: int, kept: list[int], thumbnail: bool = True) -> ImageReport:
    places = [(row, column) for row in range(rows) for column in range(columns)] + [(-1, -1)] * thumbnail
    regions = [
        RegionReport(
            row=row,
            column=column,
            is_thumbnail=row < 0,
            start=number * TOKENS,
            stop=(number + 1) * TOKENS,
            budget=sum(number * TOKENS <= token < (number + 1) * TOKENS for token in kept),
            saliency=None,
        )
        for number, (row, column) in enumerate(places)
    ]
    return ImageReport(0, len(regions) * TOKENS, torch.tensor(sorted(kept)), regions, {})


def cell(sheet: np.ndarray, tile: int, row: int, column: int) -> np.ndarray:
    """The inner pixels of a token cell, ``row`` and ``column`` counted over the whole grid of cells."""
    size = tile // SIDE
    top, left = MARGIN + row * size, MARGIN + column * size
    return sheet[top + 2 : top + size - 2, left + 2 : left + size - 2]


def gradient(width: int, height: int) -> Image.Image:
    """Every place has its own colour, and none is dark."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([100 + 150 * x / width, 100 + 150 * y / height, np.full(x.shape, 180.0)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2), (1, 4)])
def test_a_kept_token_is_clear_at_its_place_and_a_dropped_one_dark(rows: int, columns: int) -> None:
    tile = MIN_TILE
    image = gradient(columns * tile, rows * tile)
    number = rows * columns - 1  # the last tile: row rows-1, column columns-1
    token = 1 * SIDE + 3  # row 1, column 3 inside it
    sheet = np.asarray(draw_overlay(image, make_report(rows, columns, [number * TOKENS + token])))
    original = np.asarray(image)
    size = tile // SIDE
    clear = []
    for row in range(rows * SIDE):
        for column in range(columns * SIDE):
            if row % SIDE == 0:
                continue  # labels lie there
            shown = cell(sheet, tile, row, column)
            true = original[row * size + 2 : (row + 1) * size - 2, column * size + 2 : (column + 1) * size - 2]
            if (shown == true).all():
                clear.append((row, column))
            else:
                assert shown.max() < 0.6 * true.min()
    assert clear == [((rows - 1) * SIDE + 1, (columns - 1) * SIDE + 3)]


def test_the_thumbnail_stands_beside_with_its_own_tokens() -> None:
    tile = MIN_TILE
    image = gradient(2 * tile, tile)
    token = 2 * SIDE + 1
    sheet = np.asarray(draw_overlay(image, make_report(1, 2, [2 * TOKENS + token])))
    thumbnail = np.asarray(image.resize((tile, tile), Image.Resampling.BICUBIC))
    panel = sheet[MARGIN : MARGIN + tile, 2 * MARGIN + 2 * tile : 2 * MARGIN + 3 * tile]
    size = tile // SIDE
    inside = (slice(2 * size + 2, 3 * size - 2), slice(1 * size + 2, 2 * size - 2))
    assert (panel[inside] == thumbnail[inside]).all()
    beside = (slice(1 * size + 2, 2 * size - 2), slice(2 * size + 2, 3 * size - 2))
    assert panel[beside].max() < 0.6 * thumbnail[beside].min()
    assert cell(sheet, tile, 2, 1).max() < 100  # the same place of the picture itself is dropped


def test_the_picture_is_stretched_to_the_tile_grid() -> None:
    """A 100 x 100 picture that the processor cut into 3 x 1 tiles is drawn 3 times as wide as high."""
    image = gradient(100, 100)
    everything = list(range(4 * TOKENS))
    sheet = np.asarray(draw_overlay(image, make_report(1, 3, everything)))
    stretched = np.asarray(image.resize((3 * MIN_TILE, MIN_TILE), Image.Resampling.BICUBIC))
    for column in range(3 * SIDE):
        size = MIN_TILE // SIDE
        want = stretched[2 * size + 2 : 3 * size - 2, column * size + 2 : (column + 1) * size - 2]
        assert (cell(sheet, MIN_TILE, 2, column) == want).all()


def test_budgets_are_written_into_the_tiles() -> None:
    """Two reports that differ in a budget only are drawn differently, in that tile's corner and nowhere else."""
    image = gradient(2 * MIN_TILE, MIN_TILE)
    report = make_report(1, 2, [0, 1, 16])
    regions = [report.regions[0], replace(report.regions[1], budget=9), report.regions[2]]
    changed = replace(report, regions=regions)
    difference = np.any(np.asarray(draw_overlay(image, report)) != np.asarray(draw_overlay(image, changed)), axis=-1)
    ys, xs = np.nonzero(difference)
    assert len(ys)
    assert ys.max() < MARGIN + MIN_TILE // SIDE
    assert MARGIN + MIN_TILE <= xs.min() <= xs.max() < MARGIN + MIN_TILE + MIN_TILE // 2


def test_tile_borders_are_drawn() -> None:
    sheet = draw_overlay(Image.new("RGB", (400, 400), "blue"), make_report(2, 2, list(range(5 * TOKENS))))
    tile = (sheet.width - 3 * MARGIN) // 3
    border = [sheet.getpixel((MARGIN + tile, MARGIN + y)) for y in range(tile // 2, tile)]
    assert len(set(border)) == 1
    assert border[0] not in {(0, 0, 255), BACKGROUND}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_and_a_single_tile(mode: str) -> None:
    sheet = draw_overlay(Image.new(mode, (20, 30)), make_report(1, 1, [3], thumbnail=False))
    assert sheet.mode == "RGB"
    assert sheet.width >= MIN_TILE + 2 * MARGIN
    assert sheet.height >= MIN_TILE + 2 * MARGIN


def test_a_large_picture_is_drawn_no_larger_than_needed() -> None:
    sheet = draw_overlay(Image.new("RGB", (6000, 4500)), make_report(3, 4, [0]))
    assert sheet.width < 2600


def test_a_region_that_is_no_square_is_refused() -> None:
    report = ImageReport(0, 12, torch.tensor([0]), [RegionReport(0, 0, False, 0, 12, 1, None)], {})
    with pytest.raises(ValueError, match="12 tokens"):
        draw_overlay(Image.new("RGB", (10, 10)), report)


def test_the_same_input_gives_the_same_picture_and_the_input_is_untouched() -> None:
    image = gradient(200, 100)
    before = image.tobytes()
    report = make_report(1, 2, [1, 5, 40])
    assert draw_overlay(image, report).tobytes() == draw_overlay(image, report).tobytes()
    assert image.tobytes() == before


def test_kept_and_dropped_are_told_apart_in_the_dark() -> None:
    """A black picture: the kept token stays black, and a line runs around it."""
    report = make_report(1, 1, [1 * SIDE + 1], thumbnail=False)
    sheet = np.asarray(draw_overlay(Image.new("RGB", (MIN_TILE, MIN_TILE)), report))
    size = MIN_TILE // SIDE
    assert sheet[MARGIN + size : MARGIN + 2 * size, MARGIN + size : MARGIN + 2 * size].max() == 0
    around = slice(MARGIN + size - 1, MARGIN + 2 * size + 1)
    for line in (sheet[around, MARGIN + size - 1], sheet[MARGIN + 2 * size, around]):
        assert (line[1:-1] == EDGE).all()
