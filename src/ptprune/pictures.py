"""Opens pictures: what a viewer would show, as RGB, or one clear sentence why not."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ptprune.errors import UserError, first_line

# Raster formats that Pillow decodes by itself: no PostScript (it would start Ghostscript), no remote or vector formats.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PIXELS = 89_478_485  # Pillow's own limit for pictures that are not an attack: 256 MiB as RGB
TOO_LARGE = f"too large to open safely; a picture may have up to {MAX_PIXELS // 10**6} million pixels"
MIN_SIDE = 4  # below that nothing is to be seen, and processors can take the colours for a side
MAX_ASPECT = 200  # no tile grid comes near: the picture would be stretched beyond recognition


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a file, upright, in RGB.

    EXIF rotation is applied, transparency laid on white, 16 bits scaled to 8, the first frame of an animation taken.

    Raises:
        UserError: for anything that cannot be read whole, or cannot mean anything to a model.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; give the path of a picture")
    if not path.is_file():
        raise UserError(f"{path}: not a file; give the path of a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of metadata; the picture's size is checked below
            Image.init()
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                _check_size(image)
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever the broken bytes lead them to
        raise UserError(f"{path}: {_reason(error)}") from None


class _Unusable(Exception):
    """A picture means nothing to a model, or cannot be opened safely. The message says why."""


def _reason(error: Exception) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return TOO_LARGE
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture that can be read; give one of {', '.join(FORMATS)}"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"damaged or truncated picture ({first_line(error)}); give a complete file"


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB, with transparency on white and deep pixels scaled, not clipped."""
    if image.mode.startswith("I"):
        return _scale_integers(image).convert("RGB")
    if image.mode in ("F", "LAB"):
        kind = {"F": "floating-point pixels", "LAB": "LAB colours"}[image.mode]
        raise _Unusable(f"{kind} have no agreed white; save it as an 8-bit or 16-bit RGB picture")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _scale_integers(image: Image.Image) -> Image.Image:
    """16-bit grey values as 8-bit ones."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _Unusable("32-bit pixels have no agreed white; save it as an 8-bit or 16-bit picture")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _check_size(image: Image.Image) -> None:
    """Refuse by size, before any pixel is decoded."""
    width, height = image.size
    size = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise _Unusable(f"{size}; {TOO_LARGE}")
    if min(width, height) < MIN_SIDE:
        raise _Unusable(f"{size} show nothing; a side must be at least {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _Unusable(f"{size} would be stretched beyond recognition; the sides' ratio must be at most {MAX_ASPECT}")
