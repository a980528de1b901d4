"""Options that several commands have in common."""

from __future__ import annotations

from typing import Annotated

import typer

MODEL, PRUNING, OUTPUT = "Model", "Pruning", "Output"
"""Panels of ``--help``."""

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Checkpoint directory or Hub name; without it the small one that ships.",
        rich_help_panel=MODEL,
        metavar="ID_OR_DIR",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=MODEL)]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, float16.", rich_help_panel=MODEL)]
AttentionOption = Annotated[
    str | None,
    typer.Option(
        "--attention", help="sdpa, eager or flash_attention_2.", rich_help_panel=MODEL, show_default="the model's own"
    ),
]
MaxTilesOption = Annotated[
    int | None,
    typer.Option("--max-tiles", min=1, help="Most tiles a picture (default: the model's own).", rich_help_panel=MODEL),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=OUTPUT)]


def as_option(message: str) -> str:
    """A message that begins with a setting's name ("keep_ratio must be ...") as one about the option of that name."""
    name, space, rest = message.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest}"
