"""Every kind of picture file: shown as a viewer would show it, or refused with a reason."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ptprune.bounds import MAX_PIXELS
from ptprune.errors import UserError
from ptprune.pictures import HEAVY, SPARE, open_picture, open_pictures

HALVES = Image.new("RGB", (40, 20), (200, 30, 40))
HALVES.paste((20, 60, 220), (20, 0, 40, 20))  # red left, blue right


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def close(a: tuple[int, ...], b: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def check_halves(image: Image.Image) -> None:
    assert image.mode == "RGB"
    assert image.size == (40, 20)
    assert close(pixel(image, 5, 10), (200, 30, 40))
    assert close(pixel(image, 35, 10), (20, 60, 220))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff", "a.ppm", "a.dat"])
def test_common_formats_whatever_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    HALVES.save(path, format="PNG" if name.endswith("dat") else None, **({"quality": 95} if name[2] in "jw" else {}))
    check_halves(open_picture(path))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    HALVES.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    check_halves(open_picture(tmp_path / "a.jpg"))


def test_palette(tmp_path: Path) -> None:
    HALVES.quantize(4).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    check_halves(open_picture(tmp_path / "a.png"))


def test_greyscale_and_bilevel(tmp_path: Path) -> None:
    Image.new("L", (10, 10), 77).save(tmp_path / "grey.png")
    assert pixel(open_picture(tmp_path / "grey.png"), 5, 5) == (77, 77, 77)
    Image.new("1", (10, 10), 1).save(tmp_path / "bits.png")
    assert pixel(open_picture(tmp_path / "bits.png"), 5, 5) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    shown = np.asarray(open_picture(tmp_path / f"a.{suffix}"))
    assert np.abs(shown[4, :, 0] - np.linspace(0, 255, 64)).max() <= 1


def test_sixteen_bit_rgb(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">3H", 0x8000, 0x4000, 0xFFFF) * 6
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 6, 5, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row * 5)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    assert close(pixel(open_picture(tmp_path / "a.png"), 2, 2), (128, 64, 255), 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (20, 0, 40, 20))
    image.convert(mode).save(tmp_path / "a.png")
    shown = open_picture(tmp_path / "a.png")
    assert pixel(shown, 5, 5) == (255, 255, 255)
    assert pixel(shown, 35, 5) == (90, 90, 90)


def test_half_transparency_is_blended(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert close(pixel(open_picture(tmp_path / "a.png"), 4, 4), (127, 127, 127), 1)


def test_transparent_palette_entry(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((4, 4), 1)
    image.save(tmp_path / "a.png", transparency=0)
    shown = open_picture(tmp_path / "a.png")
    assert pixel(shown, 0, 0) == (255, 255, 255)
    assert pixel(shown, 4, 4) == (200, 100, 50)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated 90 degrees clockwise
    HALVES.save(tmp_path / "a.jpg", quality=95, exif=exif)
    shown = open_picture(tmp_path / "a.jpg")
    assert shown.size == (20, 40)
    assert close(pixel(shown, 10, 5), (200, 30, 40))
    assert close(pixel(shown, 10, 35), (20, 60, 220))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(open_picture(tmp_path / "a.gif"), 5, 5) == (255, 0, 0)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        open_picture(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nothing.png")
    assert "not a file" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert "not a picture" in refused(tmp_path / "a.png")


def test_postscript_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert "not a picture" in refused(tmp_path / "a.eps")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg"}.get(suffix, suffix))
    whole = buffer.getvalue()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert any(word in refused(path) for word in ("truncated", "not a picture"))


def test_one_pixel_shows_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert "1 x 1 pixels" in refused(tmp_path / "a.png")


def test_extreme_aspect_ratio(tmp_path: Path) -> None:
    Image.new("RGB", (20000, 3)).save(tmp_path / "a.png")
    assert "20000 x 3" in refused(tmp_path / "a.png")
    Image.new("RGB", (2000, 9)).save(tmp_path / "b.png")
    assert "at most 200" in refused(tmp_path / "b.png")
    Image.new("RGB", (2000, 10)).save(tmp_path / "c.png")
    assert open_picture(tmp_path / "c.png").size == (2000, 10)


@pytest.mark.parametrize("size", [(10_000, 9_000), (50_000, 50_000)])
def test_decompression_bomb(tmp_path: Path, size: tuple[int, int]) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", *size, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(png + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))
    assert "89.5 million pixels" in refused(tmp_path / "a.png")


def test_pixels_without_agreed_white(tmp_path: Path) -> None:
    Image.new("F", (8, 8), 0.5).save(tmp_path / "a.tiff")
    assert "floating-point" in refused(tmp_path / "a.tiff")
    Image.fromarray(np.full((8, 8), 2**30, np.int32)).save(tmp_path / "b.tiff")
    assert "32-bit" in refused(tmp_path / "b.tiff")
    Image.fromarray(np.full((8, 8), 65535, np.int32)).save(tmp_path / "c.tiff")
    assert pixel(open_picture(tmp_path / "c.tiff"), 1, 1) == (255, 255, 255)


def tiff(path: Path, values: np.ndarray, **tags: int) -> np.ndarray:
    """The picture of these values, saved as TIFF and opened, as one channel."""
    numbers = {"most": 281, "photometric": 262}
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[numbers[name]] = value
    Image.fromarray(values).save(path, tiffinfo=info)
    return np.asarray(open_picture(path))[..., 0]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_white_is_that_of_the_values(tmp_path: Path, dtype: type, bits: int) -> None:
    """Microscopes and scanners write 12 bits into 16; divided by 65535 they are almost black."""
    ramp = np.tile(np.linspace(0, 2**bits - 1, 64), (8, 1)).astype(dtype)
    shown = tiff(tmp_path / "a.tiff", ramp)
    assert np.abs(shown[4] - np.linspace(0, 255, 64)).max() <= 1


def test_white_is_that_of_the_tag(tmp_path: Path) -> None:
    dark = np.full((8, 8), 500, np.uint16)
    assert tiff(tmp_path / "a.tiff", dark, most=1000)[0, 0] in (127, 128)
    assert tiff(tmp_path / "b.tiff", dark, most=100)[0, 0] == round(500 / 1023 * 255)  # a tag that cannot be


def test_white_may_be_zero(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64), (8, 1)).astype(np.uint16)
    shown = tiff(tmp_path / "a.tiff", ramp, photometric=0)
    assert np.abs(shown[4] - np.linspace(255, 0, 64)).max() <= 1


def test_dark_png_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "a.png")
    assert pixel(open_picture(tmp_path / "a.png"), 1, 1) == (16, 16, 16)


def test_one_frame_is_shown_and_said_so(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tiff"):
        said: list[str] = []
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert close(pixel(open_picture(tmp_path / name, say=said.append), 5, 5), (255, 0, 0))
        assert len(said) == 1
        assert "the first" in said[0]
        frames[0].save(tmp_path / name)
        open_picture(tmp_path / name, say=said.append)
        assert len(said) == 1


def test_strips_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 41, 4), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = np.asarray(open_picture(tmp_path / "a.png"))
    monkeypatch.setattr("ptprune.pictures.STRIP", 100)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), whole)
    alpha = noise[..., 3:] / 255
    assert np.abs(whole - (noise[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_the_most_pixels_are_a_choice(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    assert len(open_pictures([path, path], 20_000)) == 2
    for paths, most in (([path], 9_999), ([path, path], 19_999)):
        with pytest.raises(UserError, match="too large"):
            open_pictures(paths, most)
    with pytest.raises(UserError, match="at most 64"):
        open_pictures([path] * 65)


MEASURE = """
import resource, sys
from ptprune.pictures import SPARE, open_picture
from PIL import Image
import numpy
Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
width, height = open_picture(sys.argv[1]).size
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, width * height * 3)
"""
SIDES = 3000, 2000


def heavy(path: Path, kind: str) -> None:
    """A large picture of few bytes."""
    if kind == "grey16.png":
        Image.fromarray(np.zeros(SIDES, np.uint16)).save(path)
    elif kind == "grey32.tiff":
        Image.fromarray(np.full(SIDES, 60000, np.int32)).save(path)
    elif kind == "clear.png":
        Image.new("P", SIDES).save(path, transparency=0)
    elif kind == "rgba.png":
        Image.new("RGBA", SIDES, (1, 2, 3, 4)).save(path)
    elif kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("CMYK", SIDES).save(path, exif=exif)
    else:
        Image.new("RGBA", SIDES, (1, 2, 3, 4)).convert("RGB" if kind.endswith("jpg") else "RGBA").save(path)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        *[(name, 3.0) for name in ("grey16.png", "grey32.tiff", "clear.png", "rgba.png", "turned.jpg", "plain.jpg")],
        *[(name, 9.0) for name in ("heavy.webp", "heavy.jp2")],  # these have fewer pixels to spend: see below
    ],
)
def test_memory_is_three_times_the_picture(tmp_path: Path, kind: str, most: float) -> None:
    heavy(tmp_path / kind, kind)
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / kind], capture_output=True, text=True, check=True
    ).stdout
    used, size = map(int, told.split())
    assert used <= most * size + (12 << 20)  # strips, tables
    pixels = HEAVY.get({"webp": "WEBP", "jp2": "JPEG2000"}.get(kind[-4:].strip("."), ""), MAX_PIXELS)
    assert used / size * 3 * pixels <= 9 * pixels + SPARE
