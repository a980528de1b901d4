"""Options that several commands share, and how the command line reads lists of ratios, settings and names."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

from ptprune.bounds import MAX_PIXELS, MAX_RATIOS, MAX_TILES, MIN_SIDE
from ptprune.errors import SettingError, UserError

model, pruning, output = (partial(typer.Option, rich_help_panel=panel) for panel in ("Model", "Pruning", "Output"))
"""Options in the panels of ``--help``."""
RATIOS = ".75,.5,.25,.1,.05"

Model = Annotated[
    str | None,
    model("--model", help="Checkpoint directory or Hub name; default: the one that ships.", metavar="ID_OR_DIR"),
]
Device = Annotated[str, model("--device", help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, model("--dtype", help="auto, float32, bfloat16, float16.")]
Attention = Annotated[
    str | None, model("--attention", help="sdpa, eager or flash_attention_2.", show_default="the model's own")
]
MaxTiles = Annotated[
    int | None, model("--max-tiles", min=1, max=MAX_TILES, help="Most tiles a picture (default: the model's own).")
]
MaxPixels = Annotated[
    int, model("--max-pixels", min=MIN_SIDE**2, max=MAX_PIXELS, help="Most pixels that are opened, of all pictures.")
]
Settings = Annotated[
    list[str] | None, pruning("--set", metavar="NAME=VALUE", help="A setting of ptp; may be repeated.")
]
Json = Annotated[bool, output("--json", help="One JSON object.")]
PlainJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def as_option(message: str) -> str:
    """A message that begins with a setting's name ("keep_ratio must be ...") as one about the option of that name."""
    name, space, rest = message.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest}"


def parse_ratios(text: str, option: str = "--ratios") -> list[float]:
    """Numbers with commas between: each once, largest first."""
    ratios = set()
    for part in text.split(","):
        try:
            ratio = float(part)
        except ValueError:
            raise UserError(f"{option} {text}: {part.strip() or 'nothing'!r} is no number; give {RATIOS}") from None
        if not 0 < ratio <= 1:
            raise UserError(f"{option} {text}: {part.strip()} is out of range; each must be over 0 and at most 1")
        ratios.add(ratio)
    if len(ratios) > MAX_RATIOS:
        raise UserError(f"{option}: {len(ratios)} ratios; give at most {MAX_RATIOS}")
    return sorted(ratios, reverse=True)


def parse_settings(pairs: Sequence[str] | None, ratios: str = "--ratios") -> dict[str, Any]:
    """NAME=VALUE pairs; values as Python writes them, anything else is text.

    Args:
        ratios: the option that says how many tokens stay.
    """
    given = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UserError(f"--set {pair}: give NAME=VALUE, such as alpha=0.3")
        if name in ("keep_ratio", "keep_tokens"):
            raise UserError(f"--set {pair}: {ratios} says how many tokens stay")
        try:
            given[name] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # nested beyond what Python reads
            given[name] = value.strip()
    return given


def check_settings(given: dict[str, Any]) -> None:
    """Raises UserError for a setting that ptp does not have, or a value out of range."""
    from ptprune.methods import make_pruner

    try:
        make_pruner("ptp", given)
    except SettingError as error:
        raise UserError(f"--set {error}") from None


def parse_methods(text: str, known: Sequence[str]) -> list[str]:
    """Names of methods, each of them known."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--methods {text}: {name or 'nothing'!r} is unknown; give some of {', '.join(known)}")
    return list(dict.fromkeys(names))
