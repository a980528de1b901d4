"""Help without noise: no type behind a flag, and defaults in words without brackets of their own."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


def quiet(parameters: list[Any]) -> list[Any]:
    """The parameters of a command, as its help shows them."""
    for one in parameters:
        if getattr(one, "is_flag", False):
            one.metavar = ""
        if isinstance(words := getattr(one, "show_default", None), str):
            one.help, one.show_default = rf"{one.help} \[default: {words}]", False
    return parameters


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return quiet(super().get_params(ctx))


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return quiet(super().get_params(ctx))
