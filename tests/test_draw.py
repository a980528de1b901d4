"""The overlay: kept tokens as they were, dropped ones darker, each at its own place; borders, budgets and sizes."""

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
from ptprune.draw import MARGIN, MAX_SIDE, MIN_CELL, MIN_SIDE, draw_overlay, token_boxes
from ptprune.report import ImageReport, RegionReport

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def region(row: int, column: int, indices: Sequence[int], grid: tuple[int, int], box: Box) -> RegionReport:
    return RegionReport(
        row, column, row < 0, min(indices), max(indices) + 1, list(indices), grid, box, 0, None, len(indices)
    )


def tiled(rows: int, columns: int, grid: tuple[int, int] = (4, 4), first: int = 0) -> list[RegionReport]:
    """Equal tiles, one after the other."""
    size = grid[0] * grid[1]
    found = []
    for number, (row, column) in enumerate(np.ndindex(rows, columns)):
        box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        found.append(region(row, column, range(first + size * number, first + size * (number + 1)), grid, box))
    return found


def interleaved(row_ends: Sequence[int], column_ends: Sequence[int], first: int = 0, outer: Box = WHOLE):
    """Tiles of one common token grid, numbered row by row through all of them; ``outer`` is the whole grid's box."""
    rows, columns = [0, *row_ends], [0, *column_ends]
    left, top, right, bottom = outer
    across = [left + (right - left) * edge / columns[-1] for edge in columns]
    down = [top + (bottom - top) * edge / rows[-1] for edge in rows]
    numbers = first + np.arange(rows[-1] * columns[-1]).reshape(rows[-1], columns[-1])
    found = []
    for i, j in np.ndindex(len(row_ends), len(column_ends)):
        own = numbers[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        found.append(region(i, j, own.ravel().tolist(), own.shape, (across[j], down[i], across[j + 1], down[i + 1])))
    return found


def thumbnail(first: int, grid: tuple[int, int] = (4, 4), box: Box = WHOLE) -> RegionReport:
    return region(-1, -1, range(first, first + grid[0] * grid[1]), grid, box)


def report_of(regions: Sequence[RegionReport], kept: Sequence[int] | None = None) -> ImageReport:
    """A report that keeps these tokens, or a random 40 %."""
    tokens = sorted(token for one in regions for token in one.indices)
    kept = random.Random(0).sample(tokens, max(1, round(0.4 * len(tokens)))) if kept is None else kept
    budgets = [replace(one, budget=len(set(one.indices) & set(kept))) for one in regions]
    return ImageReport(0, len(tokens), torch.tensor(sorted(kept)), budgets, {}, torch.arange(len(tokens)))


def gradient(width: int, height: int) -> Image.Image:
    """Every place has its own colour, and none is dark."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([100 + 150 * x / width, 100 + 150 * y / height, np.full(x.shape, 180.0)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def clear_by_definition(regions: Sequence[RegionReport], kept: set[int], width: int, height: int) -> np.ndarray:
    """Bool [height, width]: whether the token that a pixel's centre lies in was kept, by exact arithmetic."""

    def owners(length: int, start: float, stop: float, cells: int) -> list[int | None]:
        low, high = (Fraction(edge).limit_denominator(10**6) for edge in (start, stop))
        places = [(Fraction(2 * pixel + 1, 2 * length) - low) / (high - low) * cells for pixel in range(length)]
        return [int(place) if 0 <= place < cells else None for place in places]

    clear = np.zeros((height, width), dtype=bool)
    for one in regions:
        (rows, columns), (left, top, right, bottom) = one.grid, one.box
        for y, row in enumerate(owners(height, top, bottom, rows)):
            for x, column in enumerate(owners(width, left, right, columns)):
                if row is not None and column is not None:
                    clear[y, x] |= one.indices[row * columns + column] in kept
    return clear


def check_panel(shown: np.ndarray, picture: Image.Image, clear: np.ndarray) -> None:
    """Clear pixels are the picture's; all others are dark, but for a line along the clear ones."""
    assert (shown[clear] == np.asarray(picture)[clear]).all()
    beside = np.zeros_like(clear)
    beside[1:] |= clear[:-1]
    beside[:-1] |= clear[1:]
    beside[:, 1:] |= clear[:, :-1]
    beside[:, :-1] |= clear[:, 1:]
    dropped = shown[~clear & ~beside]
    assert (dropped.max(axis=-1, initial=0) < 80).all()  # the gradient begins at 100
    assert len(np.unique(shown[beside & ~clear], axis=0)) <= 1


LAYOUTS: dict[str, list[RegionReport]] = {
    "tiles and thumbnail": [*tiled(2, 3), thumbnail(96)],
    "one row": tiled(1, 4),
    "grids that are not square": [*tiled(2, 2, (3, 5)), thumbnail(60, (3, 5))],
    "thumbnail first, unequal tiles in common rows": [thumbnail(0), *interleaved([3, 5], [4, 7], first=16)],
    "many windows": interleaved([4, 8, 12, 16, 20, 23], [4, 8, 12, 16, 19, 23, 27, 31]),
    "beyond the picture": [thumbnail(0), *interleaved([4, 8], [4, 8], first=16, outer=(-0.03, 0.0, 1.03, 1.0))],
    "part of the picture": interleaved([3, 5], [2, 4], outer=(0.0, 0.0, 0.9, 0.7)),
    "nothing but a thumbnail": [thumbnail(0, (3, 4))],
}


@pytest.mark.parametrize("regions", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("size", [(150, 109), (128, 160)], ids=["wide", "high"])
def test_kept_tokens_are_clear_and_dropped_ones_dark(
    regions: list[RegionReport], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "frame", lambda *arguments: None)  # borders and labels lie over the tokens
    monkeypatch.setattr(draw, "MIN_SIDE", 1)
    monkeypatch.setattr(draw, "MIN_REGION", 1)
    image, report = gradient(*size), report_of(regions)
    kept, (width, height) = set(report.kept.tolist()), size
    sheet = np.asarray(draw_overlay(image, report))
    tiles = [one for one in regions if not one.is_thumbnail]
    shown = sheet[MARGIN : MARGIN + height, MARGIN : MARGIN + width]  # drawn at its own size
    check_panel(shown, image, clear_by_definition(tiles or regions, kept, width, height))
    if tiles and len(tiles) < len(regions):  # the thumbnail stands on the right, half as large
        small = image.resize((round(width / 2), round(height / 2)), Image.Resampling.BICUBIC)
        shown = sheet[MARGIN:, 2 * MARGIN + width :][: small.height, : small.width]
        thumbnails = [one for one in regions if one.is_thumbnail]
        check_panel(shown, small, clear_by_definition(thumbnails, kept, *small.size))


@pytest.mark.parametrize("width", [37, 100, 528, 1001])
def test_cells_tile_the_picture(width: int) -> None:
    """Neighbouring regions name their common edge by different sums, and share it all the same."""
    for columns in range(1, 12):
        ends = sorted(random.Random(columns).sample(range(1, 30), columns))
        regions = interleaved([3], ends)
        boxes = [box for one in regions for box in list(token_boxes(one, width, 9).values())[: one.grid[1]]]
        assert (boxes[0][0], boxes[-1][2]) == (0, width)
        assert all(one[2] == other[0] for one, other in zip(boxes, boxes[1:], strict=False))
        widths = [box[2] - box[0] for box in boxes]
        assert max(widths) - min(widths) <= 1


def test_a_box_beyond_the_picture_is_clamped() -> None:
    """Half of the outer cells lie outside: the others keep their place and their size."""
    one = region(0, 0, range(4), (1, 4), (-0.5 / 3, 0.0, 1 + 0.5 / 3, 1.0))
    boxes = token_boxes(one, 300, 10)
    assert boxes == {0: (0, 0, 50, 10), 1: (50, 0, 150, 10), 2: (150, 0, 250, 10), 3: (250, 0, 300, 10)}
    outside = region(0, 0, range(2), (1, 2), (0.0, 0.0, 2.0, 1.0))
    assert token_boxes(outside, 300, 10) == {0: (0, 0, 300, 10), 1: (300, 0, 300, 10)}


def difference(one: Image.Image, other: Image.Image) -> Box | None:
    """Left, top, right and bottom of what differs, in pixels of the panels; None where nothing does."""
    ys, xs = np.nonzero(np.any(np.asarray(one) != np.asarray(other), axis=-1))
    return (xs.min() - MARGIN, ys.min() - MARGIN, xs.max() - MARGIN, ys.max() - MARGIN) if len(ys) else None


def labelled(image: Image.Image, regions: list[RegionReport]) -> list[bool]:
    """Whether each region's budget is written; if so, inside the region and nowhere else."""
    report = report_of(regions)
    plain = draw_overlay(image, report)
    found = []
    for number, one in enumerate(report.regions):
        others = [replace(r, budget=r.budget + (i == number)) for i, r in enumerate(report.regions)]
        place = difference(plain, draw_overlay(image, replace(report, regions=others)))
        if place is not None:
            left, top, right, bottom = one.box
            assert left * image.width <= place[0] <= place[2] < right * image.width
            assert top * image.height <= place[1] <= place[3] < bottom * image.height
        found.append(place is not None)
    return found


def test_budgets_are_written_inside_their_regions_or_left_out() -> None:
    image = gradient(640, 480)
    assert all(labelled(image, tiled(1, 2)))
    assert all(labelled(image, interleaved([4, 8, 12, 16, 20, 24], range(4, 33, 4))))
    mixed = labelled(image, interleaved([20, 21, 41], [20, 21, 41]))  # single rows and columns between
    assert mixed == [True, False, True, False, False, False, True, False, True]


def test_borders_of_the_tiles_are_there() -> None:
    one, other = (draw_overlay(Image.new("RGB", (600, 600), "blue"), report_of(tiled(*grid))) for grid in ((2, 2),) * 2)
    assert one.tobytes() == other.tobytes()  # the same input gives the same picture
    whole = draw_overlay(Image.new("RGB", (600, 600), "blue"), report_of(tiled(2, 2), list(range(64))))
    line = {whole.getpixel((MARGIN + 300, MARGIN + y)) for y in range(150, 300)}
    assert len(line) == 1
    assert line.isdisjoint({(0, 0, 255), whole.getpixel((0, 0))})


def test_sizes() -> None:
    """Small pictures are enlarged, large ones reduced, and proportions kept as long as tokens stay visible."""
    image = gradient(100, 100)
    sheet = draw_overlay(image, report_of(tiled(1, 3), list(range(48))))
    shown = sheet.crop((MARGIN, MARGIN, MARGIN + MIN_SIDE, MARGIN + MIN_SIDE))
    true = image.resize((MIN_SIDE, MIN_SIDE), Image.Resampling.BICUBIC)
    middle = (10, MIN_SIDE // 2, 160, MIN_SIDE // 2 + 40)  # between the borders
    assert shown.crop(middle).tobytes() == true.crop(middle).tobytes()
    assert image.tobytes() == gradient(100, 100).tobytes()  # the input stays as it was

    large = draw_overlay(Image.new("RGB", (6000, 4500)), report_of([*tiled(3, 4), thumbnail(192)], [0]))
    assert MAX_SIDE <= large.width <= MAX_SIDE + draw.MAX_THUMBNAIL + 3 * MARGIN
    many = draw_overlay(gradient(100, 40), report_of(tiled(2, 20, (1, 1))))
    assert many.width >= 20 * draw.MIN_REGION
    thin = draw_overlay(Image.new("RGB", (1200, 6), "white"), report_of(tiled(1, 6, (8, 8)), list(range(384))))
    assert thin.height >= 8 * MIN_CELL + 2 * MARGIN


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode(mode: str) -> None:
    assert draw_overlay(Image.new(mode, (20, 30)), report_of(tiled(1, 1), [3])).mode == "RGB"


def test_regions_that_show_nothing() -> None:
    """One that lost all of its tokens, and one beside the picture, are left out; one without its grid is refused."""
    image, report = gradient(600, 600), report_of([*tiled(1, 1), thumbnail(16)], [0, 20])
    plain = draw_overlay(image, report)
    empty = RegionReport(0, 0, False, 32, 32, [], (0, 3), (0.0, 0.5, 1.0, 0.5), 0, None, 0)
    beyond = region(0, 1, range(32, 34), (1, 2), (1.0, 0.0, 1.5, 1.0))
    for nothing in (empty, beyond):
        place = difference(plain, draw_overlay(image, replace(report, regions=[*report.regions, nothing])))
        assert place is None or place[1] >= 600  # the legend counts it
    with pytest.raises(ValueError, match="12 tokens as 4 x 4"):
        draw_overlay(image, report_of([region(0, 0, range(12), (4, 4), WHOLE)], [0]))


def test_kept_and_dropped_are_told_apart_in_the_dark() -> None:
    """A black picture: the kept token stays black, and a line runs around it."""
    sheet = np.asarray(draw_overlay(Image.new("RGB", (600, 600)), report_of(tiled(1, 1), [5])))
    near, far = MARGIN + 150, MARGIN + 300
    assert sheet[near:far, near:far].max() == 0
    for line in (sheet[near:far, near - 1], sheet[near:far, far], sheet[near - 1, near:far], sheet[far, near:far]):
        assert line.min() > 80


def test_the_question_and_the_answer_stand_above_the_picture() -> None:
    image, report = Image.new("RGB", (600, 400), "blue"), report_of(tiled(1, 2))
    plain = draw_overlay(image, report)
    asked = draw_overlay(image, report, "What is on the sign?", "Stop")
    more = asked.height - plain.height
    assert more > 2 * draw.CAPTION
    assert asked.width == plain.width
    below = asked.crop((0, MARGIN + more, *asked.size)).tobytes()
    assert below == plain.crop((0, MARGIN, *plain.size)).tobytes()
    above = np.asarray(asked)[: MARGIN + more]
    assert {draw.TEXT, draw.LINE} <= {tuple(pixel) for pixel in above.reshape(-1, 3).tolist()}
    other = draw_overlay(image, report, "What is on the sign?", "Go")
    assert other.size == asked.size
    assert other.tobytes() != asked.tobytes()


@pytest.mark.parametrize("text", ["word " * 500, "x" * 2000])
def test_long_captions_end(text: str) -> None:
    image, report = Image.new("RGB", (600, 400), "blue"), report_of(tiled(1, 2))
    sheet = draw_overlay(image, report, "why?", text)
    lines = (sheet.height - draw_overlay(image, report).height) / draw.CAPTION
    assert 2 <= lines <= 2 * (draw.MAX_LINES + 2)
    margins = np.asarray(sheet)[:, -MARGIN // 2 :]
    assert (margins == draw.BACKGROUND).all()


def partly(kept: Sequence[int]) -> ImageReport:
    """2 x 3 tiles of 16 tokens and a thumbnail: tile 1 was left out, half of tile 4 dropped inside the tower."""
    report = report_of([*tiled(2, 3), thumbnail(96)], kept)
    missing = {*range(16, 32), *range(64, 72)}
    encoded = torch.tensor([token for token in range(112) if token not in missing])
    made = {1: 0, 4: 8}
    regions = [
        replace(one, encoded=made.get(number, 16), tile_score=None if one.is_thumbnail else number / 10)
        for number, one in enumerate(report.regions)
    ]
    return replace(report, regions=regions, encoded=encoded)


def test_what_was_not_encoded_is_hatched_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "frame", lambda *arguments: None)
    image, kept = gradient(600, 400), [0, 1, 40, 75, 100]
    report = partly(kept)
    whole = replace(report, encoded=torch.arange(112))
    sheets = [np.asarray(draw_overlay(image, one))[MARGIN : MARGIN + 400] for one in (whole, report)]
    for left, width, height, regions in ((MARGIN, 600, 400, report.regions[:6]), (24 + 600, 300, 200, [])):
        plain, shown = (sheet[:height, left : left + width] for sheet in sheets)
        hatched = (shown == draw.HATCH).all(axis=-1)
        assert (plain[~hatched] == shown[~hatched]).all()
        for one in regions:
            for token, (x, y, right, bottom) in token_boxes(one, width, height).items():
                share = hatched[y:bottom, x:right].mean()
                assert share == 0 if token in report.encoded.tolist() else 0.15 < share < 0.3, token
        if not regions:  # the thumbnail was encoded
            assert not hatched.any()


def test_the_legend_and_the_tiles_tell_what_was_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    framed: list[Sequence[str]] = []
    monkeypatch.setattr(draw, "frame", lambda panel, region, labels=(): framed.append(labels))
    original = draw.ImageDraw.ImageDraw.multiline_text

    def spy(self, at, text, **options):
        said.append(text)
        return original(self, at, text, **options)

    monkeypatch.setattr(draw.ImageDraw.ImageDraw, "multiline_text", spy)
    draw_overlay(gradient(600, 400), partly([0, 40]))
    draw_overlay(gradient(600, 400), report_of([*tiled(2, 3), thumbnail(96)], [0, 40]))
    assert "6 of 7 regions and 88 of 112 tokens" in said[0]
    assert "hatched" not in said[1]
    assert [labels[0].split()[-1] for labels in framed[:6]] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert framed[7:13] == [("1/16", "1/16"), *[("0/16", "0/16")], ("1/16", "1/16"), *[("0/16", "0/16")] * 3]
