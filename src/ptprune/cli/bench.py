"""``ptprune bench``: its commands, each imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "accuracy": "ptprune.cli.bench_accuracy",
    "speed": "ptprune.cli.bench_speed",
    "report": "ptprune.cli.bench_report",
}
"""Name of a command -> module with a function of that name."""


class Later(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name)(getattr(import_module(COMMANDS[cmd_name]), cmd_name))
        return typer.main.get_command(alone)


bench = typer.Typer(cls=Later, name="bench", help="Measure accuracy and speed with and without pruning.")
