"""Draws what each level of a method saw in a picture, as heat maps. Pure functions, no files."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ptprune.draw import (
    BACKGROUND,
    MARGIN,
    TEXT,
    check_grids,
    draw_overlay,
    frame,
    hatch,
    not_encoded,
    panel_size,
    spread,
)
from ptprune.errors import Refused
from ptprune.report import ImageReport, RegionReport

TITLES = {
    "tile": "How much a tile needs to be encoded",
    "region": "Tile saliency",
    "token": "Token saliency",
    "instruction": "What the question looks at",
    "fused": "Both together",
}
"""Level -> its name for people. All but "tile" and "region" are names in ``ImageReport.scores``."""
OF_REGIONS = {"tile": "tile_score", "region": "saliency"}
"""Levels with one number a tile -> its name in ``RegionReport``."""

MAP_SIDE, THUMBNAIL_SIDE = 480, 180  # pixels of the longer side
COLOUR, FLAT = 0.72, (40, 42, 50)  # how much of a pixel is the heat's colour; where nothing was scored
BAR = 10  # pixels, the height of the scale
# dark blue over red to light yellow: brighter is always more, also in print and for the colour-blind
RAMP = np.array([(18, 20, 52), (92, 30, 112), (204, 58, 84), (250, 150, 48), (255, 242, 176)], dtype=float)


def levels(report: ImageReport) -> list[str]:
    """The levels of ``TITLES`` that the method computed for the image, in that order."""
    return [level for level in TITLES if np.isfinite(_values(report, level)).any()]


def draw_heat_map(image: Image.Image, report: ImageReport, level: str) -> Image.Image:
    """One level's scores over the picture: the brighter, the more important.

    Colours run from the lowest to the highest score of the image, both written at the scale. Left the picture with its
    tiles or windows; right the thumbnail with the scores of its own tokens. Tile scores and tile saliency are one
    number a tile, written into it; the thumbnail has none of its own there, because tiles are compared with it. Tiles
    that were left out are hatched, and where tokens have scores, so are the patches that the vision tower dropped.

    Args:
        image: the picture that was shown to the model, any size and mode.
        report: the pruning report of that picture.
        level: one of ``levels(report)``.

    Returns:
        RGB image.

    Raises:
        Refused: where the method did not compute that level, or a region has not as many tokens as its grid has cells.
    """
    if level not in levels(report):
        there = ", ".join(levels(report)) or "nothing"
        raise Refused(f"cannot draw the level {level!r}: the method computed {there}")
    check_grids(report)
    drawn = [region for region in report.regions if region.indices]
    tiles = [region for region in drawn if not region.is_thumbnail] or drawn
    thumbnails = [region for region in drawn if region not in tiles]
    picture, scale = image.convert("L"), scale_of(report, level, report.regions)
    panels = [heat_panel(picture, tiles, report, level, scale, MAP_SIDE)]
    if level not in OF_REGIONS:
        panels += [heat_panel(picture, [region], report, level, scale, THUMBNAIL_SIDE) for region in thumbnails]
    return _compose(panels, TITLES[level], *scale)


def draw_explanation(image: Image.Image, report: ImageReport) -> Image.Image:
    """One figure of a picture: which tokens were kept, and under it every level as a heat map, two a row.

    A method that scores nothing, or a ratio of 1, has no heat maps, and the figure says so.

    Args:
        image, report: see ``draw_heat_map``.

    Returns:
        RGB image.

    Raises:
        Refused: where a region has not as many tokens as its grid has cells.
    """
    overlay = draw_overlay(image, report)
    maps = [draw_heat_map(image, report, level) for level in levels(report)]
    if not maps:
        maps = [_note("No heat maps: the tokens were kept without scoring any.")]
    rows, column = [maps[start : start + 2] for start in range(0, len(maps), 2)], max(part.width for part in maps)
    heights = [max(part.height for part in row) for row in rows]
    width = max(overlay.width, column * max(map(len, rows)))
    sheet = Image.new("RGB", (width, overlay.height + sum(heights)), BACKGROUND)
    sheet.paste(overlay, (0, 0))
    for number, row in enumerate(rows):
        for place, part in enumerate(row):
            sheet.paste(part, (place * column, overlay.height + sum(heights[:number])))
    return sheet


def heat(values: np.ndarray) -> np.ndarray:
    """Colours of numbers in 0..1: uint8 [..., 3]."""
    places = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(values, places, channel) for channel in RAMP.T], axis=-1).round().astype(np.uint8)


def _values(report: ImageReport, level: str) -> np.ndarray:
    """A number a token; NaN where it has none, as in what was never encoded."""
    values = np.full(report.num_tokens, np.nan)
    if level in report.scores:
        encoded = report.encoded.numpy()
        values[encoded] = report.scores[level].double().numpy()[encoded]
    elif level in OF_REGIONS:
        for region in report.regions:
            number = getattr(region, OF_REGIONS[level])
            if number is not None and not region.is_thumbnail:
                values[region.indices] = number
    return values


def scale_of(report: ImageReport, level: str, regions: Sequence[RegionReport]) -> tuple[float, float]:
    """The lowest and the highest number that a level, one of ``levels(report)``, has in some regions."""
    values = _values(report, level)[[token for region in regions for token in region.indices]]
    return float(np.nanmin(values)), float(np.nanmax(values))


def heat_panel(
    picture: Image.Image,
    regions: Sequence[RegionReport],
    report: ImageReport,
    level: str,
    scale: tuple[float, float],
    longest: int,
) -> Image.Image:
    """The picture in grey under the colours of some regions' tokens, without title and scale.

    Args:
        picture: greyscale.
        level: one of ``levels(report)``.
        scale: the numbers that are darkest and brightest.
        longest: pixels of the longer side, or more where the tokens need them.
    """
    values = _values(report, level)
    width, height = panel_size(picture.size, regions, longest)
    found = spread(regions, lambda token: float(values[token]), width, height, empty=float("nan"))
    low, high = scale
    scored = np.isfinite(found)
    share = np.where(scored, found - low, 0.0) / (high - low if high > low else 1.0)
    grey = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=float)[..., None]
    colours = np.where(scored[..., None], heat(share), np.array(FLAT, dtype=np.uint8))
    panel = Image.fromarray((COLOUR * colours + (1 - COLOUR) * grey).round().astype(np.uint8))
    left_out = [region for region in regions if level not in OF_REGIONS or not region.encoded]
    panel = hatch(panel, not_encoded(left_out, report, width, height))
    for region in regions:
        number = getattr(region, OF_REGIONS[level]) if level in OF_REGIONS else None
        frame(panel, region, [] if number is None else [_number(number)])
    return panel


def _compose(panels: Sequence[Image.Image], title: str, low: float, high: float) -> Image.Image:
    """Panels side by side between a title and the scale of colours."""
    large, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    top, height = MARGIN + 26, max(panel.height for panel in panels)
    width = max(sum(panel.width + MARGIN for panel in panels) + MARGIN, 260)
    sheet = Image.new("RGB", (width, top + height + MARGIN + BAR + 28), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 2), title, font=large, fill=TEXT)
    x = MARGIN
    for panel in panels:
        sheet.paste(panel, (x, top))
        x += panel.width + MARGIN
    y, length = top + height + MARGIN, width - 2 * MARGIN
    bar = heat(np.linspace(0, 1, length))[None].repeat(BAR, axis=0)
    sheet.paste(Image.fromarray(bar), (MARGIN, y))
    for number, anchor, place in ((low, "la", MARGIN), (high, "ra", width - MARGIN)):
        draw.text((place, y + BAR + 4), _number(number), font=small, fill=TEXT, anchor=anchor)
    return sheet


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def _note(text: str) -> Image.Image:
    """A line of text for a figure that has nothing to show."""
    font = ImageFont.load_default(size=15)
    sheet = Image.new("RGB", (ceil(font.getlength(text)) + 2 * MARGIN, 20 + 2 * MARGIN), BACKGROUND)
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), text, font=font, fill=TEXT)
    return sheet
