"""``ptprune verify``: the guarantees on the user's own checkpoint, machine and versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.bounds import MAX_PIXELS
from ptprune.cli import options
from ptprune.cli.console import note, out, print_json, quiet_libraries, working
from ptprune.errors import UserError

if TYPE_CHECKING:
    from ptprune.verification import Verification


def verify(
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    attention: options.Attention = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures to ask about, two at most; without it two are drawn.", metavar="IMAGE"),
    ] = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    keep_ratio: Annotated[float, typer.Option(help="Share of visual tokens that stay.")] = 0.5,
    json_output: options.Json = False,
) -> None:
    """Check on this machine that pruning is exact: run it after every upgrade. Takes about thirty forward passes.

    Exit status 1 where a check fails.
    """
    from ptprune.pictures import open_pictures

    if picture and len(picture) > 2:
        raise UserError(f"--picture: {len(picture)} pictures; give two at most")
    if not 0 < keep_ratio < 1:
        raise UserError(
            f"--keep-ratio {keep_ratio}: nothing would be dropped, or nothing left; give one between 0 and 1"
        )
    pictures = open_pictures(picture or (), max_pixels, note)
    with working("loading torch and transformers") as work:
        from ptprune.checkpoints import Checkpoint, choose_device, choose_dtype
        from ptprune.verification import verify as run

        quiet_libraries()
        target, precision = choose_device(device), choose_dtype(dtype)
        checkpoint = Checkpoint.find(model)
        work.say(f"loading {checkpoint.name}")
        processor = checkpoint.processor()
        loaded = checkpoint.model(target, precision, attention)
        work.say("comparing the pruned model with the stock one")
        found = run(loaded, processor, pictures, keep_ratio=keep_ratio)
    if json_output:
        print_json({"checkpoint": checkpoint.name, **found.to_dict()})
    else:
        _show(checkpoint.name, found)
    if not found.passed:
        raise typer.Exit(1)


def _show(name: str, found: Verification) -> None:
    from rich.markup import escape

    from ptprune.results.table import terminal

    console = out()
    versions = ", ".join(f"{package} {number}" for package, number in found.versions.items())
    console.print(f"{escape(name)}: {found.model}, {found.dtype} on {found.device}, {found.attention} attention")
    console.print(versions, style="dim")
    console.print("\nthe stock model's own noise, in logits:")
    console.print(terminal(("", ""), [(f"  {escape(what)}", f"{size:.2g}") for what, size in found.noise.items()]))
    console.print()
    table = terminal(("check", "result", "deviation", "bound"), [])
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
