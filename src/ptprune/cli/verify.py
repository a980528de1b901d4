"""``ptprune verify``: the guarantees on the user's own checkpoint, machine and versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.cli.console import out, print_json, progress
from ptprune.cli.options import MODEL, Device, Dtype, Json, Model

if TYPE_CHECKING:
    from ptprune.verification import Verification


def verify(
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Annotated[
        str | None,
        typer.Option(help="sdpa, eager or a flash attention (default: the model's own).", rich_help_panel=MODEL),
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures to ask about, two at most; without it two are drawn.", metavar="IMAGE"),
    ] = None,
    keep_ratio: Annotated[float, typer.Option(help="Share of visual tokens that stay.")] = 0.5,
    json_output: Json = False,
) -> None:
    """Check on this machine that pruning is exact: run it after every upgrade. Takes about thirty forward passes.

    Exit status 1 where a check fails.
    """
    from ptprune.errors import UserError
    from ptprune.pictures import open_picture

    if picture and len(picture) > 2:
        raise UserError(f"--picture: {len(picture)} pictures; give two at most")
    if not 0 < keep_ratio < 1:
        raise UserError(
            f"--keep-ratio {keep_ratio}: nothing would be dropped, or nothing left; give one between 0 and 1"
        )
    pictures = [open_picture(path) for path in picture or ()]
    with progress("loading torch and transformers") as say:
        from ptprune.checkpoints import find as loading
        from ptprune.verification import verify as run

        loading.quiet_libraries()
        target, precision = loading.choose_device(device), loading.choose_dtype(dtype)
        name = model or loading.SHIPPED
        directory = loading.find(model)
        say(f"loading {name}")
        loading.check_family(directory, name)
        processor = loading.load_processor(directory, name)
        loaded = loading.load_model(directory, name, target, precision, attention)
        say("comparing the pruned model with the stock one")
        found = run(loaded, processor, pictures, keep_ratio=keep_ratio)
    if json_output:
        print_json({"checkpoint": name, **found.to_dict()})
    else:
        _show(name, found)
    if not found.passed:
        raise typer.Exit(1)


def _show(name: str, found: Verification) -> None:
    from rich.markup import escape

    from ptprune.cli.presenting import plain_table

    console = out()
    versions = ", ".join(f"{package} {number}" for package, number in found.versions.items())
    console.print(f"{escape(name)}: {found.model}, {found.dtype} on {found.device}, {found.attention} attention")
    console.print(versions, style="dim")
    console.print("\nthe stock model's own noise, in logits:")
    noise = plain_table("", "")
    for what, size in found.noise.items():
        noise.add_row(f"  {escape(what)}", f"{size:.2g}")
    console.print(noise)
    console.print()
    table = plain_table("check", "result", "deviation", "bound")
    for check in found.checks:
        numbers = ["" if number is None else f"{number:.2g}" for number in (check.deviation, check.bound)]
        colour = {"ok": "green", "FAIL": "bold red", "inconclusive": "yellow", "not supported": "yellow"}[check.result]
        table.add_row(check.name, f"[{colour}]{check.result}[/{colour}]", *numbers)
    console.print(table)
    for check in found.checks:
        if check.reason and check.result != "ok":
            console.print(f"{check.name}: {check.result}. {check.reason}", markup=False)
    console.print()
    missing = sum(check.result == "not supported" for check in found.checks)
    passed = f"{len(found.checks) - missing} checks passed" + (f", {missing} not supported here" if missing else "")
    verdict = passed if found.passed else "NOT exact on this machine: please report this table"
    console.print(verdict, style="bold green" if found.passed else "bold red")
