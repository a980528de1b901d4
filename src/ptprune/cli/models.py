"""``ptprune models``: the supported families, and what each level of the pyramid uses there."""

from __future__ import annotations

from typing import Annotated

import typer

from ptprune.cli.console import out, print_json


def models(json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """List the supported model families and what each stage uses there."""
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
                ]
            }
        )
        return
    console = out()
    for name, family in FAMILIES.items():
        console.print(f"[bold]{name}[/bold]  {family.model_class}, such as {family.example}")
        for level, text in family.stages.items():
            console.print(f"  {level:<12} {text}")
