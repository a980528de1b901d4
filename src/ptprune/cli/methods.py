"""``ptprune methods``: every pruning method and every option of PTP's levels, one line each."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import typer

from ptprune.cli.console import out, print_json


def methods(json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """List the pruning methods, and the scores that PTP's levels choose from, one line each."""
    from ptprune.methods import METHODS
    from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TOKEN_SCORES

    levels = {registry.level: registry for registry in (REGION_SCORES, TOKEN_SCORES, INSTRUCTION_SCORES)}

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
                ],
                "scores": {
                    level: {name: registry[name].about for name in registry.names} for level, registry in levels.items()
                },
            }
        )
        return
    console = out()
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        console.print(f"[bold]{name:<{width}}[/bold]  {about(method)}")
    for level, registry in levels.items():
        console.print(f"\n[bold]ptp, {level} level[/bold] (setting `{level}`)")
        width = max(map(len, registry.names))
        for name in registry.names:
            console.print(f"  [bold]{name:<{width}}[/bold]  {registry[name].about}")


def about(method: type[Any]) -> str:
    """The first line of a method's docstring."""
    return (method.__doc__ or "").strip().split("\n")[0]
