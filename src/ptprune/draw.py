"""Draws a picture with its kept tokens clear and its dropped ones dimmed. Pure functions, no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ptprune.errors import Refused
from ptprune.report import ImageReport, RegionReport

MIN_SIDE, MAX_SIDE = 528, 1792  # pixels of the drawn picture's longer side: labels stay legible, files stay small
MIN_REGION = 64  # pixels a tile or window gets where MAX_SIDE allows, so that its label fits
MIN_CELL = 4  # pixels a token gets at the least, even where that stretches the picture or makes it larger
MAX_THUMBNAIL = 448
MIN_FONT, MAX_FONT = 9, 28
CAPTION, MAX_LINES = 18, 3  # size of the question and the answer, and how many lines each takes at the most
MARGIN = 12
BACKGROUND = (24, 26, 32)
LINE = (255, 196, 56)
TEXT = (240, 240, 240)
EDGE = (130, 136, 150)
DIMMED = 0.28  # brightness left to a dropped token
HATCH, STEP, STROKE = (
    (112, 146, 178),
    9,
    2,
)  # lines over what was not encoded: colour, pixels apart, width


def draw_overlay(image: Image.Image, report: ImageReport, question: str = "", answer: str = "") -> Image.Image:
    """Dim every token that was dropped, where the model saw it.

    Left the picture with the borders of its tiles or windows and the budget of each ("7/16": 7 of its 16 tokens
    stayed); right the thumbnail with its own kept tokens; below a legend. The picture keeps its own proportions unless
    tokens would become thinner than ``MIN_CELL`` pixels. A pixel belongs to the token whose cell its centre lies in;
    what no token shows stays dark. What was never encoded, a tile that was left out or patches that were dropped inside
    the vision tower, is hatched; where tiles were scored for that, each has its score beside its budget.

    Args:
        image: the picture that was shown to the model, any size and mode.
        report: the pruning report of that picture.
        question: written above the picture, in as many lines as it takes. The font that Pillow brings knows Latin
            letters; others appear as boxes.
        answer: written below the question.

    Returns:
        RGB image.

    Raises:
        Refused: where a region has not as many tokens as its grid has cells.
    """
    check_grids(report)
    picture = image.convert("RGB")
    drawn = [region for region in report.regions if region.indices]
    tiles = [region for region in drawn if not region.is_thumbnail]
    places = [max(region.row, region.column) + 1 for region in tiles]
    wanted = max(*picture.size, MIN_REGION * max(places, default=1))
    longest = min(max(wanted, MIN_SIDE), MAX_SIDE)  # about the picture's own, within what labels and files need
    panels = [_panel(picture, tiles, report, longest)] if tiles else []
    side = min(longest // 2, MAX_THUMBNAIL) if tiles else longest
    panels += [_panel(picture, [region], report, side, "thumbnail ") for region in drawn if region.is_thumbnail]
    return _compose(panels, report, [text for text in (question, answer) if text.strip()])


def check_grids(report: ImageReport) -> None:
    """Raises Refused where a region has not as many tokens as its grid has cells."""
    for region in report.regions:
        rows, columns = region.grid
        if len(region.indices) != rows * columns:
            raise Refused(f"cannot draw a region of {len(region.indices)} tokens as {rows} x {columns} cells")


def token_boxes(region: RegionReport, width: int, height: int) -> dict[int, tuple[int, int, int, int]]:
    """Where a region's tokens lie on a drawing of the whole picture.

    The cells tile the region's box without gaps or overlaps, and so do neighbouring regions whose boxes touch.

    Args:
        region: a tile, window or thumbnail.
        width: of the drawing, in pixels.
        height: of the drawing, in pixels.

    Returns:
        token (index among the image's tokens) -> (left, top, right, bottom) in pixels, right and bottom excluded. A
        cell that lies outside the picture is empty.
    """
    rows, columns = region.grid
    left, top, right, bottom = region.box
    across, down = _edges(left, right, columns, width), _edges(top, bottom, rows, height)
    return {
        token: (across[column], down[row], across[column + 1], down[row + 1])
        for token, (row, column) in zip(region.indices, np.ndindex(rows, columns), strict=True)
    }


def _edges(start: float, stop: float, cells: int, length: int) -> list[int]:
    """The ``cells + 1`` pixels where cells begin and end: those whose centre is the first behind an edge."""
    edges = (start + (stop - start) * cell / cells for cell in range(cells + 1))
    # rounded first: two regions name their common edge by different sums
    pixels = (ceil(round(edge * length - 0.5, 6)) for edge in edges)
    return [min(max(pixel, 0), length) for pixel in pixels]


def _panel(
    picture: Image.Image, regions: Sequence[RegionReport], report: ImageReport, longest: int, name: str = ""
) -> Image.Image:
    """The picture with the cells of some of its regions, ``longest`` pixels long or as much as the tokens need."""
    width, height = panel_size(picture.size, regions, longest)
    kept = set(report.kept.tolist())
    clear = spread(regions, kept.__contains__, width, height, empty=False)
    panel = dim(picture.resize((width, height), Image.Resampling.BICUBIC), clear)
    panel = hatch(panel, not_encoded(regions, report, width, height))
    for region in regions:
        budget = f"{region.budget}/{len(region.indices)}"
        score = [] if region.tile_score is None else [f"{budget}  s {region.tile_score:.2g}"]
        frame(panel, region, (*score, name + budget, budget))
    return panel


def not_encoded(regions: Sequence[RegionReport], report: ImageReport, width: int, height: int) -> np.ndarray:
    """Bool [height, width]: the pixels of tokens that the vision encoder made nothing of."""
    encoded = set(report.encoded.tolist())
    return spread(regions, lambda token: token not in encoded, width, height, empty=False)


def hatch(panel: Image.Image, where: np.ndarray) -> Image.Image:
    """Draw slanted lines over a part of a panel.

    Args:
        panel: RGB.
        where: bool [height, width].
    """
    if not where.any():
        return panel
    rows, columns = np.indices(where.shape)
    pixels = np.array(panel)
    pixels[where & ((rows + columns) % STEP < STROKE)] = HATCH
    return Image.fromarray(pixels)


def panel_size(picture: tuple[int, int], regions: Sequence[RegionReport], longest: int) -> tuple[int, int]:
    """Width and height of a drawing in which every token of the regions is at least ``MIN_CELL`` pixels large.

    Args:
        picture: its width and height; the drawing keeps their proportion unless tokens would become thinner.
        longest: pixels of its longer side, or more where the tokens need them.
    """
    scale = longest / max(picture)
    # as many cells as lie across and down the whole picture where they lie densest
    across = max(region.grid[1] / (region.box[2] - region.box[0]) for region in regions)
    down = max(region.grid[0] / (region.box[3] - region.box[1]) for region in regions)
    return max(round(picture[0] * scale), ceil(MIN_CELL * across)), max(
        round(picture[1] * scale), ceil(MIN_CELL * down)
    )


def spread(
    regions: Sequence[RegionReport], of: Callable[[int], float], width: int, height: int, empty: float
) -> np.ndarray:
    """What each token stands for, at every pixel that it shows.

    Args:
        of: token (index among the image's tokens) -> its number or truth value.
        empty: what pixels get that no token shows; the array has its type.

    Returns:
        array [height, width].
    """
    found = np.full((height, width), empty)
    for region in regions:
        for token, (left, top, right, bottom) in token_boxes(region, width, height).items():
            found[top:bottom, left:right] = of(token)
    return found


def dim(panel: Image.Image, clear: np.ndarray) -> Image.Image:
    """Darken all that is not clear, and draw the edge of the clear parts, on the dark side of it.

    Args:
        panel: RGB.
        clear: bool [height, width].
    """
    dark = panel.convert("L").point(lambda value: int(value * DIMMED)).convert("RGB")
    pixels = np.where(clear[..., None], np.asarray(panel), np.asarray(dark))
    around = np.pad(clear, 1)  # the edge tells dropped and kept apart where the picture itself is dark
    near = around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
    pixels[near & ~clear] = EDGE
    return Image.fromarray(pixels)


def frame(panel: Image.Image, region: RegionReport, labels: Sequence[str] = ()) -> None:
    """Draw the border of one region, and the first of the labels that fits into its corner."""
    lefts, tops, rights, bottoms = zip(*token_boxes(region, *panel.size).values(), strict=True)
    x, y = min(lefts), min(tops)
    width, height = max(rights) - x, max(bottoms) - y
    if width < 1 or height < 1:
        return
    draw = ImageDraw.Draw(panel)
    draw.rectangle((x, y, x + width - 1, y + height - 1), outline=LINE)
    for text in dict.fromkeys(labels):
        for size in range(min(max(min(width, height) // 12, 11), MAX_FONT), MIN_FONT - 1, -1):
            font = ImageFont.load_default(size=size)
            _, _, right, lower = draw.textbbox((x + 5, y + 3), text, font=font)
            if right + 5 <= x + width and 2 * (lower + 4 - y) <= height:
                draw.rectangle((x, y, right + 4, lower + 3), fill=BACKGROUND, outline=LINE)
                draw.text((x + 5, y + 3), text, font=font, fill=TEXT)
                return


def _compose(panels: list[Image.Image], report: ImageReport, texts: Sequence[str]) -> Image.Image:
    """Panels side by side between a caption and a legend."""
    regions = f"{len(report.regions)} region{'s' if len(report.regions) > 1 else ''}"
    legend = f"{len(report.kept)} of {report.num_tokens} visual tokens kept, {regions}"
    legend += "\nclear: kept   dark: dropped   n/m: n of a region's m tokens kept"
    if report.encoded_tokens < report.num_tokens:
        legend += f"\nhatched: not encoded ({report.encoded_tiles} of {regions} and "
        legend += f"{report.encoded_tokens} of {report.num_tokens} tokens were)"
    if any(region.tile_score is not None for region in report.regions):
        legend += "\ns: how much a tile needs to be encoded"
    font, large = ImageFont.load_default(size=14), ImageFont.load_default(size=CAPTION)
    measure = ImageDraw.Draw(panels[0])
    _, _, right, lower = measure.multiline_textbbox((MARGIN, 0), legend, font=font)
    width = max(sum(panel.width + MARGIN for panel in panels), ceil(right)) + MARGIN
    lines = [
        (line, TEXT if number == 0 and len(texts) > 1 else LINE)
        for number, text in enumerate(texts)
        for line in wrapped(text, large, width - 2 * MARGIN)
    ]
    step = CAPTION + 6
    top = MARGIN + (step * len(lines) + MARGIN // 2 if lines else 0)
    bottom = top + max(panel.height for panel in panels) + 8
    sheet = Image.new("RGB", (width, bottom + ceil(lower) + MARGIN), BACKGROUND)
    draw, x = ImageDraw.Draw(sheet), MARGIN
    for number, (line, colour) in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * step), line, font=large, fill=colour)
    for panel in panels:
        sheet.paste(panel, (x, top))
        x += panel.width + MARGIN
    draw.multiline_text((MARGIN, bottom), legend, font=font, fill=TEXT)
    return sheet


def wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines of at most ``width`` pixels, the last of them shortened where ``MAX_LINES`` are not enough."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1]} ..."]
    for number, line in enumerate(lines):
        while font.getlength(line) > width and len(line) > 4:
            line = line[:-4].rstrip(".") + "..."
        lines[number] = line
    return lines
