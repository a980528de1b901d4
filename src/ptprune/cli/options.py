"""Options that several commands have alike."""

from __future__ import annotations

from typing import Annotated

import typer

MODEL, PRUNING, OUTPUT = "Model", "Pruning", "Output"
"""Panels of ``--help``."""

Model = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint directory or Hub name; without it the small one that ships.",
        rich_help_panel=MODEL,
        metavar="ID_OR_DIR",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=MODEL)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=MODEL)]
MaxTiles = Annotated[
    int | None, typer.Option(min=1, help="Most tiles a picture (default: the model's own).", rich_help_panel=MODEL)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=OUTPUT)]


def as_option(message: str) -> str:
    """A message that begins with a field's name ("keep_ratio must be ...") as one about the option of that name."""
    field, space, rest = message.partition(" ")
    return f"--{field.replace('_', '-')}{space}{rest}"
