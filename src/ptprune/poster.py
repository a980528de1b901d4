"""Draws the way of one picture from its pixels to the kept tokens, step by step. Pure functions, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ptprune.draw import (
    BACKGROUND,
    EDGE,
    LINE,
    MARGIN,
    TEXT,
    check_grids,
    dim,
    frame,
    hatch,
    not_encoded,
    panel_size,
    spread,
    wrapped,
)
from ptprune.errors import Refused
from ptprune.explain import heat_panel, levels, scale_of
from ptprune.report import ImageReport, RegionReport

SIDE = 296  # pixels of a step's longer side
ACROSS = 4  # steps in a row
HEAD, LINE_HEIGHT = 26, 17  # pixels of a title, and of a line below a step


@dataclass(frozen=True)
class Step:
    """One step: what it is called, what it did, and a drawing of it."""

    title: str
    caption: str
    panel: Image.Image


def draw_pyramid(image: Image.Image, report: ImageReport, question: str = "", answer: str = "") -> Image.Image:
    """The way of one picture from its pixels to the tokens that the language model reads.

    The picture with its tiles, the thumbnail, the tiles that are encoded, the patches that pass the vision tower, how
    much each token stands out, what the question looks at, and the tokens that are kept; then how many visual tokens
    are left after each step. A level that the method did not compute has no step.

    Args:
        image: the picture that was shown to the model, any size and mode.
        report: the pruning report of that picture.
        question: written below what it looks at.
        answer: written below the kept tokens.

    Returns:
        RGB image.

    Raises:
        Refused: for a picture that has no tiles or no thumbnail, and where a region has not as many tokens as its grid
            has cells.
    """
    check_grids(report)
    tiles = [region for region in report.regions if not region.is_thumbnail]
    thumbnail = next((region for region in report.regions if region.is_thumbnail), None)
    if not tiles or thumbnail is None:
        raise Refused("cannot draw the pyramid of a picture that has no tiles or no thumbnail")
    picture = image.convert("RGB")
    size = panel_size(picture.size, tiles, SIDE)
    shown = picture.resize(size, Image.Resampling.BICUBIC)
    steps = _encoder_steps(picture, shown, tiles, report)
    heats = {"token": ("Tokens", "how much each stands out in its tile"), "instruction": ("Question", question)}
    for level, (title, caption) in heats.items():
        if level in levels(report):
            scale = scale_of(report, level, tiles)
            steps.append(Step(title, caption, heat_panel(picture.convert("L"), tiles, report, level, scale, SIDE)))
    caption = f"{len(report.kept)} tokens reach the later layers" + (f"; answer: {answer}" if answer.strip() else "")
    kept = _part(shown, tiles, report, set(report.kept.tolist()))
    budgets = {number: f"{tile.budget}/{len(tile.indices)}" for number, tile in enumerate(tiles)}
    steps.append(Step("Kept", caption, _framed(kept, tiles, budgets)))
    return _compose([*steps, Step("What is left", "visual tokens after each step", _bars(_left(report), size))])


def _encoder_steps(
    picture: Image.Image, shown: Image.Image, tiles: Sequence[RegionReport], report: ImageReport
) -> list[Step]:
    """The picture, its thumbnail, and what of it the vision tower encodes."""
    inside = [tile for tile in tiles if tile.encoded]
    whole = {token for tile in inside for token in tile.indices}
    chosen = hatch(
        dim(shown, spread(tiles, whole.__contains__, *shown.size, empty=False)),
        spread(tiles, lambda token: token not in whole, *shown.size, empty=False),
    )
    scores = {number: f"{tile.tile_score:.2g}" for number, tile in enumerate(tiles) if tile.tile_score is not None}
    patches = _part(shown, tiles, report, set(report.encoded.tolist()))
    told = f"{len(inside)} of {len(tiles)} are encoded, not the hatched ones"
    if scores:
        told += "; the number: how much a tile needs it"
    passing = f"those of {report.encoded_tokens} of {report.num_tokens} tokens pass the vision tower"
    return [
        Step("Picture", f"{len(tiles)} tiles and a thumbnail", _framed(shown, tiles)),
        Step(
            "Thumbnail", "the whole picture as one more tile, always encoded", _thumbnail(picture, tiles[0], shown.size)
        ),
        Step("Tiles", told, _framed(chosen, tiles, scores)),
        Step("Patches", passing, _framed(patches, tiles)),
    ]


def _thumbnail(picture: Image.Image, tile: RegionReport, size: tuple[int, int]) -> Image.Image:
    """The picture with no more pixels than a tile has, as large as the panel allows."""
    left, top, right, bottom = tile.box
    width, height = max(1, round(picture.width * (right - left))), max(1, round(picture.height * (bottom - top)))
    scale = min(size[0] / width, size[1] / height)
    shown = picture.resize((width, height), Image.Resampling.BOX)
    shown = shown.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    panel = Image.new("RGB", size, BACKGROUND)
    panel.paste(shown, ((size[0] - shown.width) // 2, (size[1] - shown.height) // 2))
    return panel


def _part(shown: Image.Image, tiles: Sequence[RegionReport], report: ImageReport, tokens: set[int]) -> Image.Image:
    """The picture with some tokens clear, and hatched where it was not encoded."""
    clear = spread(tiles, tokens.__contains__, *shown.size, empty=False)
    return hatch(dim(shown, clear), not_encoded(tiles, report, *shown.size))


def _framed(panel: Image.Image, tiles: Sequence[RegionReport], labels: Mapping[int, str] = {}) -> Image.Image:
    """A copy of a panel with the borders of the tiles, and the labels of those that have one."""
    panel = panel.copy()
    for number, tile in enumerate(tiles):
        frame(panel, tile, [labels[number]] if number in labels else [])
    return panel


def _left(report: ImageReport) -> dict[str, int]:
    """Visual tokens that are left after each step."""
    return {
        "in the picture": report.num_tokens,
        "in encoded tiles": sum(len(region.indices) for region in report.regions if region.encoded),
        "with all their patches": report.encoded_tokens,
        "kept": len(report.kept),
    }


def _bars(counts: Mapping[str, int], size: tuple[int, int]) -> Image.Image:
    """A number a line, with a bar as long as its share of the first."""
    panel, font = Image.new("RGB", size, BACKGROUND), ImageFont.load_default(size=13)
    draw, step, most = ImageDraw.Draw(panel), size[1] / len(counts), next(iter(counts.values()))
    for number, (name, count) in enumerate(counts.items()):
        y = round(number * step)
        draw.text((0, y), f"{count} {name}", font=font, fill=TEXT)
        draw.rectangle((0, y + 18, size[0] - 1, y + 30), outline=EDGE)
        draw.rectangle((0, y + 18, max(1, round((size[0] - 1) * count / most)), y + 30), fill=LINE)
    return panel


def _compose(steps: Sequence[Step]) -> Image.Image:
    """The steps with their numbers, titles and captions, row by row."""
    large, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    width, height = steps[0].panel.size
    captions = [wrapped(step.caption, small, width) for step in steps]
    across, down = width + MARGIN, HEAD + height + LINE_HEIGHT * max(map(len, captions)) + MARGIN
    columns, rows = min(ACROSS, len(steps)), -(-len(steps) // ACROSS)
    sheet = Image.new("RGB", (columns * across + MARGIN, rows * down + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (step, caption) in enumerate(zip(steps, captions, strict=True)):
        x, y = MARGIN + number % ACROSS * across, MARGIN + number // ACROSS * down
        draw.text((x, y - 2), f"{number + 1}  {step.title}", font=large, fill=LINE)
        sheet.paste(step.panel, (x, y + HEAD))
        for line, text in enumerate(caption):
            draw.text((x, y + HEAD + height + 3 + LINE_HEIGHT * line), text, font=small, fill=TEXT)
    return sheet
