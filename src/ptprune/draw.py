"""Draws what was kept: a picture with its kept tokens clear and its dropped ones dimmed. Pure functions on Pillow."""

from __future__ import annotations

from math import isqrt

from PIL import Image, ImageDraw, ImageFont

from ptprune.report import ImageReport, RegionReport

MIN_TILE, MAX_TILE = 176, 448  # pixels a side on the drawing: labels stay legible, files stay small
MARGIN = 12
BACKGROUND = (24, 26, 32)
LINE = (255, 196, 56)
TEXT = (240, 240, 240)
EDGE = (130, 136, 150)
DIMMED = 0.28  # brightness left to a dropped token


def draw_overlay(image: Image.Image, report: ImageReport) -> Image.Image:
    """Lay the picture out as the model saw it, and dim every token that was dropped.

    Left the picture, stretched to its tile grid as the processor stretches it, with tile borders and each tile's budget
    ("7/16": 7 of its 16 tokens stayed); right the thumbnail with its own kept tokens; below a legend.

    Args:
        image: the picture that was shown to the model, any size and mode.
        report: what was kept of it.

    Returns:
        RGB image, at least ``MIN_TILE`` pixels a tile.

    Raises:
        ValueError: where a region's tokens are not a square grid.
    """
    rows, columns = report.grid
    tile = _tile_side(image, report)
    picture = image.convert("RGB")
    canvas = picture.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC)
    tiles = [region for region in report.regions if not region.is_thumbnail]
    kept = set(report.kept.tolist())
    for region in tiles:
        _dim(canvas, region, kept, tile, origin=(region.column * tile, region.row * tile))
    for region in tiles:
        _frame(canvas, region, tile, origin=(region.column * tile, region.row * tile))
    panels = [canvas]
    for region in report.regions:
        if region.is_thumbnail:
            panel = picture.resize((tile, tile), Image.Resampling.BICUBIC)
            _dim(panel, region, kept, tile, origin=(0, 0))
            _frame(panel, region, tile, origin=(0, 0), name="thumbnail ")
            panels.append(panel)
    return _compose(panels, _legend(report))


def token_box(region: RegionReport, token: int, tile: int) -> tuple[int, int, int, int]:
    """Where a token lies inside its tile.

    Args:
        region: the tile or thumbnail.
        token: index 0..tokens-1 inside it, row-major on a square grid.
        tile: side of the tile in pixels, a multiple of the grid's side.

    Returns:
        (left, upper, right, lower) in pixels.
    """
    side = _grid_side(region)
    cell = tile // side
    row, column = divmod(token, side)
    return column * cell, row * cell, (column + 1) * cell, (row + 1) * cell


def _grid_side(region: RegionReport) -> int:
    tokens = region.stop - region.start
    side = isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"cannot draw a region of {tokens} tokens: they are not a square grid")
    return side


def _tile_side(image: Image.Image, report: ImageReport) -> int:
    """Pixels of a tile's side: about the picture's own resolution, a whole number of pixels a token."""
    rows, columns = report.grid
    natural = max(image.width / columns, image.height / rows)
    wanted = min(max(natural, MIN_TILE), MAX_TILE)
    side = max(_grid_side(region) for region in report.regions)
    return max(round(wanted / side), 1) * side


def _dim(canvas: Image.Image, region: RegionReport, kept: set[int], tile: int, origin: tuple[int, int]) -> None:
    """Darken the dropped tokens of one region, and draw the edge of the kept ones, on the dark side of it."""
    side = _grid_side(region)
    clear = {divmod(token, side) for token in range(side * side) if region.start + token in kept}
    draw = ImageDraw.Draw(canvas)
    for token in range(side * side):
        row, column = divmod(token, side)
        if (row, column) in clear:
            continue
        left, upper, right, lower = token_box(region, token, tile)
        left, upper, right, lower = left + origin[0], upper + origin[1], right + origin[0], lower + origin[1]
        box = (left, upper, right, lower)
        canvas.paste(canvas.crop(box).convert("L").point(lambda value: int(value * DIMMED)), box)
        edges = {  # so that dropped and kept are told apart where the picture itself is dark
            (row - 1, column): (left, upper, right - 1, upper),
            (row + 1, column): (left, lower - 1, right - 1, lower - 1),
            (row, column - 1): (left, upper, left, lower - 1),
            (row, column + 1): (right - 1, upper, right - 1, lower - 1),
        }
        for neighbour, line in edges.items():
            if neighbour in clear:
                draw.line(line, fill=EDGE)


def _frame(canvas: Image.Image, region: RegionReport, tile: int, origin: tuple[int, int], name: str = "") -> None:
    """Border and budget of one region."""
    draw = ImageDraw.Draw(canvas)
    x, y = origin
    draw.rectangle((x, y, x + tile - 1, y + tile - 1), outline=LINE)
    label = f"{name}{region.budget}/{region.stop - region.start}"
    font = ImageFont.load_default(size=max(11, tile // 16))
    left, upper, right, lower = draw.textbbox((x + 5, y + 3), label, font=font)
    draw.rectangle((x, y, right + 4, lower + 3), fill=BACKGROUND, outline=LINE)
    draw.text((x + 5, y + 3), label, font=font, fill=TEXT)


def _legend(report: ImageReport) -> list[str]:
    regions = f"{len(report.regions)} region{'s' if len(report.regions) > 1 else ''}"
    counts = f"{len(report.kept)} of {report.num_tokens} visual tokens kept, {regions}"
    return [counts, "clear: kept   dark: dropped   n/m: n of a tile's m tokens kept"]


def _compose(panels: list[Image.Image], legend: list[str]) -> Image.Image:
    """Panels side by side over a legend, which stands in one line where it fits."""
    font = ImageFont.load_default(size=14)
    line = "   |   ".join(legend)
    fits = font.getlength(line) <= sum(panel.width + MARGIN for panel in panels) - MARGIN
    lines = [line] if fits else legend
    text_width = max(int(font.getlength(line)) for line in lines)
    width = max(sum(panel.width + MARGIN for panel in panels), text_width + MARGIN) + MARGIN
    height = max(panel.height for panel in panels) + MARGIN
    sheet = Image.new("RGB", (width, height + MARGIN + 22 * len(lines)), BACKGROUND)
    x = MARGIN
    for panel in panels:
        sheet.paste(panel, (x, MARGIN))
        x += panel.width + MARGIN
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((MARGIN, height + 8 + 22 * number), line, font=font, fill=TEXT)
    return sheet
