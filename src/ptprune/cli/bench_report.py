"""``ptprune bench report``: one page of results from the files of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptprune.cli import options
from ptprune.cli.console import out, quiet_libraries, working
from ptprune.cli.plugin import load
from ptprune.errors import UserError


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What bench accuracy and bench speed wrote, and numbers of papers.", metavar="FILE.json..."
        ),
    ],
    page: Annotated[
        Path, typer.Option("--out", help="The page; plots go into a folder of its name beside it.", metavar="FILE.md")
    ],
    plugin: options.Plugin = None,
) -> None:
    """Write a page of results, with plots, from the JSON files of the benchmarks."""
    if page.suffix != ".md":
        raise UserError(f"--out {page}: give a name that ends in .md")
    with working("loading torch and transformers"):
        from ptprune.bench.report.page import write

        quiet_libraries()
        load(plugin)
        written = write(files, page)
    for path in written:
        out().print(str(path), markup=False)
