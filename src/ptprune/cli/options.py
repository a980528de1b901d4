"""Options that several commands share, and how the command line reads lists of ratios, settings and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ptprune.bounds import MAX_LAYERS, MAX_PIXELS, MAX_RATIOS, MAX_TEXT, MAX_TILES, MIN_SIDE
from ptprune.errors import SettingError, UnknownSetting, UserError

if TYPE_CHECKING:
    from ptprune.pruner import TokenPruner

model, pruning, output = (partial(typer.Option, rich_help_panel=panel) for panel in ("Model", "Pruning", "Output"))
"""Options in the panels of ``--help``."""
RATIOS = ".75,.5,.25,.1,.05"
Given: TypeAlias = dict[str, dict[str, str]]
"""Method -> name of a setting -> its value as it was typed."""

Model = Annotated[
    str | None,
    model("--model", help="Checkpoint directory or Hub name.", show_default="the one that ships", metavar="ID_OR_DIR"),
]
Device = Annotated[str, model("--device", help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, model("--dtype", help="auto, float32, bfloat16, float16.")]
Attention = Annotated[
    str | None, model("--attention", help="sdpa, eager or flash_attention_2.", show_default="the model's own")
]
MaxTiles = Annotated[
    int | None, model("--max-tiles", min=1, max=MAX_TILES, help="Most tiles a picture.", show_default="the model's own")
]
MaxPixels = Annotated[
    int, model("--max-pixels", min=MIN_SIDE**2, max=MAX_PIXELS, help="Most pixels that are opened, of all pictures.")
]
Settings = Annotated[
    list[str] | None,
    pruning(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of ptp, or METHOD.NAME=VALUE; may be repeated. `ptprune methods` lists them.",
    ),
]
Plugin = Annotated[
    Path | None,
    pruning(
        "--plugin",
        metavar="FILE.py",
        help="Your own methods or scores. This runs the file: give only one that you trust.",
    ),
]
Tiles = Annotated[
    int, typer.Option("--tiles", min=1, max=MAX_TILES, help="Tiles of the picture; more than one add a thumbnail.")
]
QuestionTokens = Annotated[int, typer.Option("--text-tokens", min=1, max=MAX_TEXT, help="Tokens of the question.")]
Layers = Annotated[
    int | None, model("--layers", min=1, max=MAX_LAYERS, help="Fewer decoder layers than the shape has.")
]
CutLayer = Annotated[
    int, pruning("--layer", min=0, max=MAX_LAYERS, help="Drop before this decoder layer; 0: before all.")
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


def parse_settings(pairs: Sequence[str] | None, ratios: str | None = "--ratios", method: str = "ptp") -> Given:
    """[METHOD.]NAME=VALUE pairs, as they were typed.

    Args:
        ratios: the option that says how many tokens stay; None where a setting may say it.
        method: that a setting without one is of.
    """
    given: Given = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        of, dot, name = name.rpartition(".")
        name = name.strip().replace("-", "_")
        if not equals or not name or bool(dot) != bool(of.strip()):
            raise UserError(f"--set {pair}: give NAME=VALUE, such as alpha=0.3, or METHOD.NAME=VALUE")
        if ratios is not None and name in ("keep_ratio", "keep_tokens"):
            raise UserError(f"--set {pair}: {ratios} says how many tokens stay")
        given.setdefault(of.strip() or method, {})[name] = value
    return given


def read_settings(given: Given) -> dict[str, dict[str, Any]]:
    """Method -> its settings, of the types that they have, checked. Raises UserError."""
    from ptprune.methods import METHODS

    read: dict[str, dict[str, Any]] = {}
    for method, settings in given.items():
        if method not in METHODS:
            raise UserError(f"--set {method}.{next(iter(settings))}: no such method; see `ptprune methods`")
        try:
            for name, text in settings.items():
                read.setdefault(method, {})[name] = METHODS[method].read(name, text)
            METHODS[method](**read[method])  # rules over several settings
        except UnknownSetting as error:
            raise UserError(f"--set {name}: {error}") from None
        except SettingError as error:
            raise UserError(f"--set {error}") from None
    return read


def read_tiles(text: str | None) -> str | int | None:
    """What ``--tiles`` says, which every method takes. Raises SettingError on a value that the setting cannot have."""
    from ptprune.encoding import EncoderSettings

    return None if text is None else EncoderSettings.read("tiles", text)


def with_settings(pruners: dict[str, TokenPruner], given: Given) -> dict[str, TokenPruner]:
    """The pruners with the settings of ``--set``. Raises UserError for a setting of another method, or a wrong one."""
    read = read_settings(given)
    for other in read.keys() - pruners.keys():
        raise UserError(f"--set {other}.{next(iter(read[other]))}: {other} is not among --methods; leave it out")
    return {name: replace(pruner, **read.get(name, {})) for name, pruner in pruners.items()}


def parse_methods(text: str, known: Sequence[str]) -> list[str]:
    """Names of methods, each of them known."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--methods {text}: {name or 'nothing'!r} is unknown; give some of {', '.join(known)}")
    return list(dict.fromkeys(names))
