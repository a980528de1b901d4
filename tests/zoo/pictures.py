"""Small smooth colourful pictures and the prompts that every family gets."""

from __future__ import annotations

import numpy as np
from PIL import Image

MARKER = "<image>"

Row = tuple[str, list[Image.Image]]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A deterministic picture of this size: a few random colours, smoothly blended."""
    colours = np.random.default_rng([width, height, seed]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def prompts() -> dict[str, list[Row]]:
    """Batches of (text, pictures) by name; a text holds the marker once per picture."""
    return {
        "one picture": [("look at <image> what is the red thing", [picture(90, 60)])],
        "small picture": [("<image> name it", [picture(24, 22)])],
        "several pictures": [
            (
                "first <image> then <image><image> which of them shows the larger thing",
                [picture(100, 36), picture(30, 70), picture(77, 50)],
            )
        ],
        "batch": [
            ("here is <image> what colour is it", [picture(100, 36, 1)]),
            ("<image> what is this", [picture(24, 22, 1)]),
        ],
        "batch of several pictures": [
            ("<image> and <image> two", [picture(50, 77), picture(64, 64)]),
            ("which <image> one", [picture(70, 30)]),
        ],
        "batch with text only": [
            ("<image> which colour is the thing", [picture(36, 100)]),
            ("tell me what you see", []),
        ],
        "no text after": [("tell me what you see at <image>", [picture(77, 50, 1)])],
    }
