"""Draws docs/pyramid.png, the checkpoint's way through examples/scene.png: ``python -m tools.pyramid OUT.png``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image

from ptprune import PyramidTokenPruning, load
from ptprune.asking.answer import ask
from ptprune.asking.chat import make_prompt
from ptprune.files import replacing
from ptprune.poster import draw_pyramid

ROOT = Path(__file__).parents[1]
COLOURS = 256  # of the file, which so is a third as large
SETTINGS: dict[str, Any] = {"keep_ratio": 0.25, "tiles": "salient", "vision_layer": 2, "vision_margin": 1.5}


def pyramid() -> Image.Image:
    """The picture, from one answer that is computed for it."""
    picture = Image.open(ROOT / "examples/scene.png")
    question = (ROOT / "examples/question.txt").read_text(encoding="utf-8").strip()
    model, processor = load(device="cpu", dtype="float32")
    pruner = PyramidTokenPruning(**SETTINGS)
    answer = ask(model, processor, make_prompt(model, processor, [picture], question, {}), pruner, max_new_tokens=4)
    assert pruner.report is not None
    drawn = draw_pyramid(picture, pruner.report.images[0], question, answer.text)
    return drawn.quantize(COLOURS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    [name] = sys.argv[1:]
    with replacing(Path(name)) as beside:
        pyramid().save(beside, optimize=True)
