"""``ptprune methods``: every pruning method, one line each."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import typer

from ptprune.cli.console import out, print_json


def methods(json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """List the pruning methods, one line each."""
    from ptprune.methods import METHODS

    if json_output:
        print_json(
            {
                "methods": [
                    {
                        "name": name,
                        "about": about(method),
                        "settings": {setting.name: setting.default for setting in fields(method)},
                    }
                    for name, method in METHODS.items()
                ]
            }
        )
        return
    console = out()
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        console.print(f"[bold]{name:<{width}}[/bold]  {about(method)}")


def about(method: type[Any]) -> str:
    """The first line of a method's docstring."""
    return (method.__doc__ or "").strip().split("\n")[0]
