"""Opens pictures: what a viewer would show, as RGB, or one clear sentence why not."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ptprune.errors import UserError

# Raster formats that Pillow decodes by itself: no PostScript (it would start Ghostscript), no remote or vector formats.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PIXELS = 89_478_485  # Pillow's own limit for pictures that are not an attack: 256 MiB as RGB
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
                _check_size(image, path)
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path}: {_too_large()}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture that can be read; give one of {', '.join(FORMATS)}") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except _Unconvertible as error:
        raise UserError(f"{path}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever the broken bytes lead them to
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: damaged or truncated picture ({reason}); give a complete file") from None


class _Unconvertible(Exception):
    """The pixels have no agreed meaning as RGB."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow as RGB, with transparency on white and deep pixels scaled, not clipped."""
    if image.mode.startswith("I"):
        return _scale_integers(image).convert("RGB")
    if image.mode in ("F", "LAB"):
        kind = {"F": "floating-point pixels", "LAB": "LAB colours"}[image.mode]
        raise _Unconvertible(f"{kind} have no agreed white; save it as an 8-bit or 16-bit RGB picture")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def _scale_integers(image: Image.Image) -> Image.Image:
    """16-bit grey values as 8-bit ones."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _Unconvertible("32-bit pixels have no agreed white; save it as an 8-bit or 16-bit picture")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _check_size(image: Image.Image, path: Path) -> None:
    """Refuse by size, before any pixel is decoded."""
    width, height = image.size
    size = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {size}; {_too_large()}")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{path}: {size} show nothing; a side must be at least {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{path}: {size} would be stretched beyond recognition; the sides' ratio must be at most {MAX_ASPECT}"
        )


def _too_large() -> str:
    return f"too large to open safely; a picture may have up to {MAX_PIXELS // 10**6} million pixels"
