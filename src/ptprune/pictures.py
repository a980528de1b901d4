"""Opens pictures: what a viewer would show, as RGB, or one clear sentence why not.

A picture is decoded once and then brought to RGB strip by strip. With what its decoder needs, that takes at most three
times the bytes of the picture as RGB, and ``SPARE`` bytes besides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ptprune.bounds import MAX_PICTURES, MAX_PIXELS, MIN_SIDE
from ptprune.errors import UserError, first_line

# Raster formats that Pillow decodes by itself: no PostScript (it would start Ghostscript), no remote or vector formats.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
HEAVY = dict.fromkeys(("WEBP", "AVIF", "JPEG2000"), 30_000_000)
"""Formats whose decoders hold a picture several times -> most pixels."""
SPARE = 1 << 29
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
MAX_ASPECT = 200  # no tile grid comes near: the picture would be stretched beyond recognition
STRIP = 1 << 20  # pixels that are brought to RGB at a time
WHITES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
MAX_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 281, 262, 0  # tags of TIFF


def open_pictures(
    paths: Sequence[str | Path], max_pixels: int = MAX_PIXELS, say: Callable[[str], None] = lambda what: None
) -> list[Image.Image]:
    """``open_picture`` of each, which all are held at once.

    Raises:
        UserError: for the first that cannot be opened, or where together they are more than ``max_pixels``.
    """
    if len(paths) > MAX_PICTURES:
        raise UserError(f"{len(paths)} pictures; give at most {MAX_PICTURES} at a time")
    pictures: list[Image.Image] = []
    for path in paths:
        picture = open_picture(path, max_pixels, say)
        max_pixels -= picture.width * picture.height
        pictures.append(picture)
    return pictures


def open_picture(
    path: str | Path, max_pixels: int = MAX_PIXELS, say: Callable[[str], None] = lambda what: None
) -> Image.Image:
    """The picture in a file, upright, in RGB.

    EXIF rotation is applied, transparency laid on white, deep pixels scaled to 8 bits by their own white, the first
    frame of an animation taken.

    Args:
        max_pixels: refuse a larger picture before it is decoded.
        say: told, in a sentence, what is not shown: other frames or pages.

    Raises:
        UserError: for anything that cannot be read whole, or cannot mean anything to a model.
    """
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{path}: not a file name; give the path of a picture")
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file; give the path of a picture")
        if not path.is_file():
            raise UserError(f"{path}: not a file; give the path of a picture")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"{path}: {error.strerror or error}; give the path of a picture") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of metadata; the picture's size is checked below
            Image.init()
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                _check_size(image, max_pixels)
                if getattr(image, "is_animated", False) and image.format in (*ANIMATED, "TIFF"):
                    more = "several pages" if image.format == "TIFF" else "an animation"
                    say(f"{path}: {more}; the first {'page' if image.format == 'TIFF' else 'frame'} is shown")
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return to_rgb(image)
    except MemoryError:
        raise UserError(f"{path}: there is not enough memory to open it; give a smaller picture") from None
    except Exception as error:  # decoders raise whatever the broken bytes lead them to
        raise UserError(f"{path}: {_reason(error)}") from None


class _Unusable(UserError):
    """A picture means nothing to a model, or cannot be opened safely. The message says why."""


def _reason(error: Exception) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(MAX_PIXELS)
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture that can be read; give one of {', '.join(FORMATS)}"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"damaged or truncated picture ({first_line(error)}); give a complete file"


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB, with transparency on white and deep pixels scaled, not clipped.

    One in RGB is returned as it is. Any other is converted in strips, so that nothing of its size is held but the two.
    """
    if image.mode in ("F", "LAB"):
        kind = {"F": "floating-point pixels", "LAB": "LAB colours"}[image.mode]
        raise _Unusable(f"{kind} have no agreed white; save it as an 8-bit or 16-bit RGB picture")
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    convert = _grey(image) if image.mode.startswith("I") else _on_white if image.has_transparency_data else _plain
    shown = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        shown.paste(convert(strip), (0, top))
    return shown


def _plain(strip: Image.Image) -> Image.Image:
    return strip.convert("RGB")


def _on_white(strip: Image.Image) -> Image.Image:
    clear = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


def _grey(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The function that brings a strip of whole numbers to 8 bits, by the white of the whole picture."""
    low, high = (int(extreme) for extreme in image.getextrema())  # type: ignore[arg-type]
    if low < 0 or high > WHITES[-1]:
        raise _Unusable("32-bit pixels have no agreed white; save it as an 8-bit or 16-bit picture")
    tags = getattr(image, "tag_v2", {})
    white = _white(image.format, tags, high)
    values = np.arange(WHITES[-1] + 1)
    table = np.round(np.minimum(values, white) * (255 / white)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        table = 255 - table

    def scaled(strip: Image.Image) -> Image.Image:
        return Image.fromarray(table[np.asarray(strip)])

    return scaled


def _white(format: str | None, tags: Mapping[int, Any], high: int) -> int:
    """The value that is white. Other formats than TIFF say how many bits they use, and Pillow scales to 16; a TIFF's 16
    or 32 bits may hold 8, 10, 12 or 14, and its tag says how many, or else its values."""
    if format != "TIFF":
        return WHITES[-1]
    stated = tags.get(MAX_SAMPLE)
    stated = stated[0] if isinstance(stated, tuple) and len(stated) == 1 else stated
    if isinstance(stated, int) and high <= stated <= WHITES[-1] and stated > 0:
        return stated
    return next(white for white in WHITES if high <= white)


def _too_large(most: int) -> str:
    return f"too large to open safely; up to {most / 1e6:.3g} million pixels are opened, of all pictures together"


def _check_size(image: Image.Image, max_pixels: int) -> None:
    """Refuse by size, before any pixel is decoded."""
    width, height = image.size
    size = f"{width} x {height} pixels"
    most = min(max_pixels, HEAVY.get(image.format or "", max_pixels))
    if width * height > most:
        raise _Unusable(f"{size}; {_too_large(most)}")
    if min(width, height) < MIN_SIDE:
        raise _Unusable(f"{size} show nothing; a side must be at least {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _Unusable(f"{size} would be stretched beyond recognition; the sides' ratio must be at most {MAX_ASPECT}")
