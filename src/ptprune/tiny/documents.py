"""Seeded pages of small print: every tile of a page is a table of up to four lines, each a word and a number.

``generate_document("dev", 7)`` is the same page on every call. A page is at least three tiles high, so the thumbnail
shrinks its print to less than five pixels, which nobody can read. Splits share no seed, font or paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .backgrounds import cut_picture
from .glyphs import font
from .scenes import grids
from .world import KEYS, PRINT, SPLITS, TEXTURES, TILE, VALUES, check_split

LINE = 16
"""Pixels from one line of print to the next."""
LINES = TILE // LINE
KEY_ROOM, VALUE_ROOM = 35, 24
"""Pixels that the widest word and the widest number of a page may take."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Entry:
    """One line of a table. Boxes are (left, top, right, bottom) in pixels of the page."""

    key: str
    value: str
    column: int
    row: int
    line: int
    """Place in the table, 0 for the first."""
    key_box: Box
    value_box: Box


@dataclass(frozen=True)
class Document:
    split: str
    seed: int
    columns: int
    rows: int
    image: Image.Image
    entries: tuple[Entry, ...]
    """Table by table, in each from the top."""

    @property
    def tiles(self) -> int:
        return self.columns * self.rows


def page_grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """All (columns, rows) of a page: two or more columns, three or more rows."""
    return [(c, r) for c, r in grids(fewest, most) if c >= 2 and r >= 3]


def generate_document(
    split: str,
    seed: int,
    *,
    tiles: tuple[int, int] = (6, 12),
    grid: tuple[int, int] | None = None,
    fill: tuple[float, float] = (0.75, 1.0),
    wild: bool | None = None,
) -> Document:
    """The page that ``split`` and ``seed`` stand for.

    tiles : fewest and most tiles; ``grid`` = (columns, rows) fixes them.
    fill : least and greatest share of the lines that hold something. Tables are filled from the top.
    wild : squeeze and blur print more. Default: in the training split only.
    """
    check_split(split)
    rng = np.random.default_rng([SPLITS.index(split), seed, 12])
    wild = split == "train" if wild is None else wild
    if grid is None:
        choices = page_grids(*tiles)
        grid = choices[int(rng.integers(len(choices)))]
    columns, rows = grid
    number = columns * rows
    share = rng.uniform(*fill)
    counts = np.clip(np.floor(share * LINES + rng.random(number)), 1, LINES).astype(int)
    keys, values = (rng.permutation(words)[: counts.sum()].tolist() for words in (KEYS, VALUES))

    squeeze = float(rng.uniform(0.85, 1.2)) if wild else 1.0
    case = (str, str, str.capitalize, str.upper)[int(rng.integers(4))]
    face = _face(split, rng, squeeze, [case(key) for key in keys], values)
    aside = float(rng.uniform(36, 39))
    flush = rng.random() < 0.4
    height = face.getbbox("H")
    middle = (height[1] + height[3]) / 2
    print_ = Image.new("L", (round(columns * TILE / squeeze), rows * TILE))
    pen = ImageDraw.Draw(print_)
    entries: list[Entry] = []
    for tile, count in enumerate(counts.tolist()):
        column, row = tile % columns, tile // columns
        left, above = column * TILE + rng.uniform(1, 4), row * TILE + rng.uniform(-0.8, 0.8)
        for line in range(count):
            key, value = keys[len(entries)], values[len(entries)]
            top = above + LINE * (line + 0.5) - middle
            shift = VALUE_ROOM - 1 - face.getlength(value) * squeeze if flush else 0
            boxes: list[Box] = []
            for text, x in ((case(key), left), (value, column * TILE + aside + shift)):
                box = face.getbbox(text)
                x = max(x, column * TILE - box[0] * squeeze)  # slanted letters reach out to the left
                pen.text((x / squeeze, top), text, fill=255, font=face)
                sides = round(x + box[0] * squeeze), round(x + box[2] * squeeze)
                boxes.append((sides[0], round(top + box[1]), sides[1], round(top + box[3])))
            entries.append(Entry(key, value, column, row, line, *boxes))
    ink = np.asarray(print_.resize((columns * TILE, rows * TILE), Image.Resampling.BILINEAR), np.float32) / 255
    return Document(split, seed, columns, rows, _on_paper(split, ink, rng), tuple(entries))


def _face(
    split: str, rng: np.random.Generator, squeeze: float, keys: list[str], values: list[str]
) -> ImageFont.FreeTypeFont:
    """A font in the largest of its sizes up to a random one in which the words have room."""
    name = PRINT[split][int(rng.integers(len(PRINT[split])))]
    size = int(rng.integers(13, 17))
    while True:
        face = font(name, size, ImageFont.Layout.BASIC)  # the same on every machine
        widest = [max(face.getlength(word) for word in words) * squeeze for words in (keys, values)]
        if (widest[0] <= KEY_ROOM - 1 and widest[1] <= VALUE_ROOM) or size <= 9:
            return face
        size -= 1


def _on_paper(split: str, ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Print, [height, width] in 0..1, on paper with a faint texture and perhaps rules; some paper is dark."""
    height, width = ink.shape
    name = TEXTURES[split][int(rng.integers(len(TEXTURES[split])))]
    texture = cut_picture(name, width, height, rng)
    paper, colour = rng.uniform(0.78, 1.0, size=3), rng.uniform(0.0, 0.35, size=3)
    if rng.random() < 0.15:
        paper, colour = 1 - paper, 1 - colour
    rules = np.zeros((height, width), np.float32)
    strength = rng.uniform(0.08, 0.3)
    if rng.random() < 0.5:
        rules[LINE - 1 :: LINE] = strength
    if rng.random() < 0.5:
        rules[:, TILE - 1 :: TILE] = rules[TILE - 1 :: TILE] = strength
    page = paper.astype(np.float32) + (texture - texture.mean()) * np.float32(rng.uniform(0, 0.25))
    for layer, strongest in ((rules, 1.0), (ink, rng.uniform(0.75, 1.0))):
        page += (layer * np.float32(strongest))[..., None] * (colour.astype(np.float32) - page)
    page += rng.normal(0, rng.uniform(0, 0.02), size=(height, width, 1)).astype(np.float32)
    return Image.fromarray((np.clip(page, 0, 1) * 255 + 0.5).astype(np.uint8))
