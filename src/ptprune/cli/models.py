"""``ptprune models``: the supported families, what each level of the pyramid uses there, and what is refused."""

from __future__ import annotations

from textwrap import fill
from typing import Annotated

import typer

from ptprune.cli.console import out, print_json

WIDTH = 80
LABEL = 13  # as wide as the longest level's name and two spaces


def models(json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """List the supported model families, what each stage uses there, and which models are refused."""
    from ptprune.families import FAMILIES

    if json_output:
        print_json(
            {
                "families": [
                    {
                        "name": name,
                        "model_class": family.model_class,
                        "example": family.example,
                        "stages": dict(family.stages),
                    }
                    for name, family in FAMILIES.items()
                ],
                "refused": [{"model_class": name, "reason": reason} for name, reason in refused().items()],
            }
        )
        return
    console = out()
    for name, family in FAMILIES.items():
        console.print(f"[bold]{name}[/bold]")
        rows = {"class": family.model_class, "example": family.example, **family.stages}
        for label, text in rows.items():
            console.print(row(label, text), markup=False)
        console.print()
    console.print("[bold]refused by name[/bold]")
    for name, reason in refused().items():
        console.print(f"  {name}", markup=False)
        console.print(row("", reason), markup=False)


def row(label: str, text: str) -> str:
    """A label and what there is to say under it, in lines of ``WIDTH``."""
    return fill(
        text, WIDTH, initial_indent=f"  {label:<{LABEL}}", subsequent_indent=" " * (LABEL + 2), break_on_hyphens=False
    )


def refused() -> dict[str, str]:
    """Model class -> why it is not supported; wrappers around models are left out."""
    from ptprune.families import UNSUPPORTED

    return {name: reason for name, reason in UNSUPPORTED.items() if name.endswith("ForConditionalGeneration")}
