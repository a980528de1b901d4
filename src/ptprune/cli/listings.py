"""``ptprune models`` and ``ptprune methods``: supported and refused models, and the choice of methods and scores."""

from __future__ import annotations

from dataclasses import fields
from textwrap import fill

from rich.console import Console

from ptprune.cli import options
from ptprune.cli.console import out, print_json
from ptprune.cli.plugin import load

WIDTH = 80
LABEL = 13  # as wide as the longest level's name and two spaces


def models(json_output: options.PlainJson = False) -> None:
    """List the supported model families, what each stage uses there, and which models are refused."""
    from ptprune.families import FAMILIES, UNSUPPORTED

    families = [
        {"name": name, "model_class": family.model_class, "example": family.example, "stages": dict(family.stages)}
        for name, family in FAMILIES.items()
    ]
    # wrappers around models are left out
    refused = {name: reason for name, reason in UNSUPPORTED.items() if name.endswith("ForConditionalGeneration")}
    if json_output:
        reasons = [{"model_class": name, "reason": reason} for name, reason in refused.items()]
        return print_json({"families": families, "refused": reasons})
    console = out()
    for name, family in FAMILIES.items():
        console.print(f"[bold]{name}[/bold]")
        for label, text in {"class": family.model_class, "example": family.example, **family.stages}.items():
            console.print(row(label, text), markup=False)
        console.print()
    console.print("[bold]refused by name[/bold]")
    for name, reason in refused.items():
        console.print(f"  {name}\n{row('', reason)}", markup=False)


def row(label: str, text: str) -> str:
    """A label and its text beside it, in lines of ``WIDTH``."""
    first = f"  {label:<{LABEL}}"
    return fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def methods(plugin: options.Plugin = None, json_output: options.PlainJson = False) -> None:
    """List the pruning methods, the scores that settings choose from, and the settings for `--set`."""
    from ptprune.methods import METHODS
    from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TILE_SCORES, TOKEN_SCORES

    load(plugin)
    levels = {
        registry.level: {name: registry[name].about for name in registry.names}
        for registry in (REGION_SCORES, TOKEN_SCORES, INSTRUCTION_SCORES, TILE_SCORES)
    }
    abouts = {name: (method.__doc__ or "").strip().split("\n")[0] for name, method in METHODS.items()}
    if json_output:
        found = [
            {"name": name, "about": about, "settings": {one.name: one.default for one in fields(METHODS[name])}}
            for name, about in abouts.items()
        ]
        return print_json({"methods": found, "scores": levels})
    console = out()
    _print_lines(console, abouts)
    for level, lines in levels.items():
        whose = "all methods, which tiles are encoded" if level == TILE_SCORES.level else f"ptp, {level} level"
        console.print(f"\n[bold]{whose}[/bold] (setting `{level}`)")
        _print_lines(console, lines, "  ")
    console.print("\n[bold]settings[/bold] (`--set NAME=VALUE`) and their defaults")
    for line in setting_lines():
        console.print(line, markup=False)


def setting_lines() -> list[str]:
    """The settings that all methods share, with the first method's defaults, and those that each has for itself."""
    from ptprune.methods import METHODS
    from ptprune.pruner import TokenPruner

    shared = {one.name: one.default for one in fields(TokenPruner)}
    lines = [row("all", _written(shared))]
    for name, method in METHODS.items():
        own = {one.name: one.default for one in fields(method)}
        differing = {key: value for key, value in own.items() if key not in shared or shared[key] != value}
        if differing:
            lines.append(row(name, _written(differing)))
    return lines


def _written(settings: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _print_lines(console: Console, lines: dict[str, str], indent: str = "") -> None:
    width = max(map(len, lines))
    for name, about in lines.items():
        console.print(f"{indent}[bold]{name:<{width}}[/bold]  {about}")
