"""The overlay's pixels: kept tokens unchanged, dropped ones darker, each at its own place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ptprune import draw
from ptprune.draw import BACKGROUND, EDGE, MARGIN, MAX_SIDE, MIN_CELL, MIN_SIDE, draw_overlay, token_boxes
from ptprune.report import ImageReport, RegionReport

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def region(row: int, column: int, indices: Sequence[int], grid: tuple[int, int], box: Box) -> RegionReport:
    return RegionReport(row, column, row < 0, min(indices), max(indices) + 1, list(indices), grid, box, 0, None)


def tiled(rows: int, columns: int, grid: tuple[int, int] = (4, 4), first: int = 0) -> list[RegionReport]:
    """Equal tiles, one after the other."""
    size = grid[0] * grid[1]
    places = [(row, column) for row in range(rows) for column in range(columns)]
    return [
        region(
            row,
            column,
            range(first + size * number, first + size * (number + 1)),
            grid,
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows),
        )
        for number, (row, column) in enumerate(places)
    ]


def interleaved(row_ends: Sequence[int], column_ends: Sequence[int], first: int = 0, outer: Box = WHOLE):
    """Tiles of one common token grid, numbered row by row through all of them; ``outer`` is the whole grid's box."""
    rows, columns = [0, *row_ends], [0, *column_ends]
    left, top, right, bottom = outer
    across = [left + (right - left) * edge / columns[-1] for edge in columns]
    down = [top + (bottom - top) * edge / rows[-1] for edge in rows]
    return [
        region(
            i,
            j,
            [
                first + row * columns[-1] + column
                for row in range(rows[i], rows[i + 1])
                for column in range(columns[j], columns[j + 1])
            ],
            (rows[i + 1] - rows[i], columns[j + 1] - columns[j]),
            (across[j], down[i], across[j + 1], down[i + 1]),
        )
        for i in range(len(row_ends))
        for j in range(len(column_ends))
    ]


def thumbnail(first: int, grid: tuple[int, int] = (4, 4), box: Box = WHOLE) -> RegionReport:
    return region(-1, -1, range(first, first + grid[0] * grid[1]), grid, box)


def report_of(regions: Sequence[RegionReport], kept: Sequence[int] | None = None, seed: int = 0) -> ImageReport:
    """A report that keeps these tokens, or a random 40 %."""
    tokens = sorted(token for one in regions for token in one.indices)
    assert tokens == list(range(len(tokens)))
    if kept is None:
        kept = random.Random(seed).sample(tokens, max(1, round(0.4 * len(tokens))))
    budgets = [replace(one, budget=len(set(one.indices) & set(kept))) for one in regions]
    return ImageReport(0, len(tokens), torch.tensor(sorted(kept)), budgets, {})


def gradient(width: int, height: int) -> Image.Image:
    """Every place has its own colour, and none is dark."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([100 + 150 * x / width, 100 + 150 * y / height, np.full(x.shape, 180.0)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def slow_mask(regions: Sequence[RegionReport], kept: set[int], width: int, height: int) -> np.ndarray:
    """Bool [height, width]: for each pixel the token that its centre lies in, asked of every cell in turn."""

    def owners(length: int, start: float, stop: float, cells: int) -> list[int | None]:
        low, high = (Fraction(edge).limit_denominator(10**6) for edge in (start, stop))
        found: list[int | None] = []
        for pixel in range(length):
            centre = Fraction(2 * pixel + 1, 2 * length)
            inside = [
                cell
                for cell in range(cells)
                if low + (high - low) * cell / cells <= centre < low + (high - low) * (cell + 1) / cells
            ]
            assert len(inside) <= 1
            found.append(inside[0] if inside else None)
        return found

    clear = np.zeros((height, width), dtype=bool)
    for one in regions:
        rows, columns = one.grid
        left, top, right, bottom = one.box
        across, down = owners(width, left, right, columns), owners(height, top, bottom, rows)
        for y, row in enumerate(down):
            for x, column in enumerate(across):
                if row is not None and column is not None:
                    clear[y, x] |= one.indices[row * columns + column] in kept
    return clear


def slow_panel(picture: Image.Image, clear: np.ndarray) -> np.ndarray:
    pixels, grey = np.asarray(picture), np.asarray(picture.convert("L"))
    height, width = clear.shape
    out = np.zeros_like(pixels)
    for y in range(height):
        for x in range(width):
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            if clear[y, x]:
                out[y, x] = pixels[y, x]
            elif any(0 <= v < height and 0 <= u < width and clear[v, u] for v, u in around):
                out[y, x] = EDGE
            else:
                out[y, x] = int(grey[y, x] * draw.DIMMED)
    return out


LAYOUTS: dict[str, list[RegionReport]] = {
    "tiles and thumbnail": [*tiled(2, 3), thumbnail(96)],
    "one row": tiled(1, 4),
    "one tile": tiled(1, 1),
    "grids that are not square": [*tiled(2, 2, (3, 5)), thumbnail(60, (3, 5))],
    "thumbnail first, unequal tiles in common rows": [thumbnail(0), *interleaved([3, 5], [4, 7], first=16)],
    "many windows": interleaved([4, 8, 12, 16, 20, 23], [4, 8, 12, 16, 19, 23, 27, 31]),
    "strips": [thumbnail(0, (2, 2)), *tiled(1, 3, (2, 2), first=4)],
    "beyond the picture": [
        thumbnail(0),
        *interleaved([4, 8], [4, 8], first=16, outer=(-0.03, 0.0, 1.03, 1.0)),
    ],
    "part of the picture": interleaved([3, 5], [2, 4], outer=(0.0, 0.0, 0.9, 0.7)),
    "nothing but a thumbnail": [thumbnail(0, (3, 4))],
}


@pytest.mark.parametrize("regions", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("size", [(150, 109), (128, 160)], ids=["wide", "high"])
def test_every_pixel_is_its_tokens(
    regions: list[RegionReport], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "_frame", lambda *arguments: None)  # borders and labels lie over the tokens
    monkeypatch.setattr(draw, "MIN_SIDE", 1)
    monkeypatch.setattr(draw, "MIN_REGION", 1)
    image, report = gradient(*size), report_of(regions)
    kept = set(report.kept.tolist())
    sheet = np.asarray(draw_overlay(image, report))
    width, height = size  # drawn as it is
    tiles = [one for one in regions if not one.is_thumbnail]
    clear = slow_mask(tiles or regions, kept, width, height)
    shown = sheet[MARGIN : MARGIN + height, MARGIN : MARGIN + width]
    assert (shown == slow_panel(image, clear)).all()
    assert clear.any()
    if not tiles or len(tiles) == len(regions):
        return
    small = image.resize((round(width / 2), round(height / 2)), Image.Resampling.BICUBIC)
    left = 2 * MARGIN + width
    shown = sheet[MARGIN : MARGIN + small.height, left : left + small.width]
    clear = slow_mask([one for one in regions if one.is_thumbnail], kept, *small.size)
    assert (shown == slow_panel(small, clear)).all()


@pytest.mark.parametrize("width", [37, 100, 528, 1001])
def test_cells_tile_the_picture(width: int) -> None:
    """Neighbouring regions name their common edge by different sums, and share it all the same."""
    for columns in range(1, 12):
        ends = sorted(random.Random(columns).sample(range(1, 30), columns))
        regions = interleaved([3], ends)
        boxes = [box for one in regions for box in list(token_boxes(one, width, 9).values())[: one.grid[1]]]
        assert boxes[0][0] == 0
        assert boxes[-1][2] == width
        assert all(one[2] == other[0] for one, other in zip(boxes, boxes[1:], strict=False))
        assert max(box[2] - box[0] for box in boxes) - min(box[2] - box[0] for box in boxes) <= 1


def test_a_box_beyond_the_picture_is_clamped() -> None:
    """Half of the outer cells lie outside: the others keep their place and their size."""
    one = region(0, 0, range(4), (1, 4), (-0.5 / 3, 0.0, 1 + 0.5 / 3, 1.0))
    boxes = token_boxes(one, 300, 10)
    assert boxes == {0: (0, 0, 50, 10), 1: (50, 0, 150, 10), 2: (150, 0, 250, 10), 3: (250, 0, 300, 10)}
    outside = region(0, 0, range(2), (1, 2), (0.0, 0.0, 2.0, 1.0))
    assert token_boxes(outside, 300, 10) == {0: (0, 0, 300, 10), 1: (300, 0, 300, 10)}
    beyond = [*tiled(1, 1), region(0, 1, range(16, 18), (1, 2), (1.0, 0.0, 1.5, 1.0))]
    lone = draw_overlay(gradient(600, 600), report_of(beyond[:1], [0]))
    both = draw_overlay(gradient(600, 600), report_of(beyond, [0]))
    area = (0, 0, MARGIN + 600, MARGIN + 600)
    assert both.crop(area).tobytes() == lone.crop(area).tobytes()


def test_the_picture_keeps_its_proportions() -> None:
    """A 100 x 100 picture that was cut into 1 x 3 tiles stays square."""
    sheet = np.asarray(draw_overlay(gradient(100, 100), report_of(tiled(1, 3), list(range(48)))))
    true = np.asarray(gradient(100, 100).resize((MIN_SIDE, MIN_SIDE), Image.Resampling.BICUBIC))
    middle = slice(MIN_SIDE // 2, MIN_SIDE // 2 + 40)
    assert (sheet[MARGIN:, MARGIN:][middle, 10:160] == true[middle, 10:160]).all()


def test_budgets_are_written_into_the_tiles() -> None:
    """Two reports that differ in a budget only are drawn differently, in that tile's corner and nowhere else."""
    image = gradient(600, 300)
    report = report_of([*tiled(1, 2), thumbnail(32)], [0, 1, 16])
    regions = [report.regions[0], replace(report.regions[1], budget=9), report.regions[2]]
    changed = replace(report, regions=regions)
    difference = np.any(np.asarray(draw_overlay(image, report)) != np.asarray(draw_overlay(image, changed)), axis=-1)
    ys, xs = np.nonzero(difference)
    assert len(ys)
    assert ys.max() < MARGIN + 300 // 4
    assert MARGIN + 300 <= xs.min() <= xs.max() < MARGIN + 300 + 300 // 2


def labelled(image: Image.Image, regions: list[RegionReport]) -> list[bool]:
    """Whether each region's budget was written, and nowhere but inside the region."""
    report = report_of(regions)
    plain = np.asarray(draw_overlay(image, report))
    found = []
    for number, one in enumerate(report.regions):
        others = [replace(one, budget=one.budget + 1) if i == number else r for i, r in enumerate(report.regions)]
        other = np.asarray(draw_overlay(image, replace(report, regions=others)))
        ys, xs = np.nonzero(np.any(plain != other, axis=-1))
        if len(ys):
            left, top, right, bottom = one.box
            assert MARGIN + left * image.width <= xs.min() <= xs.max() < MARGIN + right * image.width
            assert MARGIN + top * image.height <= ys.min() <= ys.max() < MARGIN + bottom * image.height
        found.append(bool(len(ys)))
    return found


def test_labels_of_many_windows_stay_inside_or_are_left_out() -> None:
    assert all(labelled(gradient(640, 480), interleaved([4, 8, 12, 16, 20, 24], range(4, 33, 4))))
    small = draw_overlay(gradient(100, 40), report_of(tiled(2, 20, (1, 1))))
    assert small.width >= 20 * draw.MIN_REGION
    mixed = labelled(gradient(640, 480), interleaved([20, 21, 41], [20, 21, 41]))  # single rows and columns between
    assert mixed == [True, False, True, False, False, False, True, False, True]


def test_tile_borders_are_drawn() -> None:
    sheet = draw_overlay(Image.new("RGB", (600, 600), "blue"), report_of(tiled(2, 2), list(range(64))))
    border = [sheet.getpixel((MARGIN + 300, MARGIN + y)) for y in range(150, 300)]
    assert len(set(border)) == 1
    assert border[0] not in {(0, 0, 255), BACKGROUND}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_and_a_single_tile(mode: str) -> None:
    sheet = draw_overlay(Image.new(mode, (20, 30)), report_of(tiled(1, 1), [3]))
    assert sheet.mode == "RGB"
    assert sheet.width >= MIN_SIDE * 2 // 3 + 2 * MARGIN
    assert sheet.height >= MIN_SIDE + 2 * MARGIN


def test_a_large_picture_is_drawn_no_larger_than_needed() -> None:
    sheet = draw_overlay(Image.new("RGB", (6000, 4500)), report_of([*tiled(3, 4), thumbnail(192)], [0]))
    assert sheet.width <= MAX_SIDE + draw.MAX_THUMBNAIL + 3 * MARGIN


def test_tokens_of_a_thin_picture_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "_frame", lambda *arguments: None)
    regions = tiled(1, 6, (8, 8))
    sheet = np.asarray(draw_overlay(Image.new("RGB", (1200, 6), "white"), report_of(regions, [0])))
    white = (sheet[MARGIN : MARGIN + 8 * MIN_CELL, MARGIN : MARGIN + 1200] == 255).all(axis=-1)
    assert white.sum() == 25 * MIN_CELL
    assert white[:MIN_CELL, :25].all()


def test_a_region_that_does_not_fill_its_grid_is_refused() -> None:
    report = ImageReport(0, 12, torch.tensor([0]), [region(0, 0, range(12), (4, 4), WHOLE)], {})
    with pytest.raises(ValueError, match="12 tokens as 4 x 4"):
        draw_overlay(Image.new("RGB", (10, 10)), report)


def test_a_tile_that_lost_all_of_its_tokens_is_left_out() -> None:
    empty = RegionReport(0, 0, False, 16, 16, [], (0, 3), (0.0, 0.5, 1.0, 0.5), 0, None)
    image, report = gradient(200, 100), report_of([thumbnail(0)], [3])
    both = replace(report, regions=[*report.regions, empty])
    assert draw_overlay(image, both).crop((0, 0, 500, 200)).tobytes() == (
        draw_overlay(image, report).crop((0, 0, 500, 200)).tobytes()
    )


def test_the_same_input_gives_the_same_picture_and_the_input_is_untouched() -> None:
    image = gradient(200, 100)
    before = image.tobytes()
    report = report_of([*tiled(1, 2), thumbnail(32)], [1, 5, 40])
    assert draw_overlay(image, report).tobytes() == draw_overlay(image, report).tobytes()
    assert image.tobytes() == before


def test_kept_and_dropped_are_told_apart_in_the_dark() -> None:
    """A black picture: the kept token stays black, and a line runs around it."""
    report = report_of(tiled(1, 1), [5])
    sheet = np.asarray(draw_overlay(Image.new("RGB", (600, 600)), report))
    near, far = MARGIN + 150, MARGIN + 300
    assert sheet[near:far, near:far].max() == 0
    for line in (sheet[near:far, near - 1], sheet[near:far, far], sheet[near - 1, near:far], sheet[far, near:far]):
        assert (line == EDGE).all()
