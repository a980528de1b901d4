"""``ptprune eval``: a suite of benchmarks through lmms-eval, with and without pruning, as one table."""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ptprune.cli.bars import bars, waiting
from ptprune.cli.console import out, print_json
from ptprune.cli.options import MODEL, OUTPUT, PRUNING, Device, Dtype, Json, MaxTiles, Model
from ptprune.cli.parsing import check_settings, parse_methods, parse_ratios, parse_settings
from ptprune.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ptprune.lmms.comparison import Comparison
    from ptprune.lmms.suites import Benchmark

RATIOS = "1,.5"
OUT = Path("ptprune-eval")


def eval(
    suite: Annotated[str, typer.Option(help="ptp13, hires or local.")] = "ptp13",
    benchmarks: Annotated[
        str | None, typer.Option(help="Only these of the suite.", metavar="NAMES", show_default="all")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions of each.")] = None,
    keep_ratio: Annotated[
        str, typer.Option(help="Shares of visual tokens that stay; 1: unpruned.", rich_help_panel=PRUNING)
    ] = RATIOS,
    methods: Annotated[str, typer.Option(help="Names with commas between.", rich_help_panel=PRUNING)] = "ptp",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of ptp; may be repeated.", rich_help_panel=PRUNING),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Annotated[
        str | None,
        typer.Option(help="eager, sdpa, flash_attention_2.", rich_help_panel=MODEL, show_default="the model's own"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions a batch.", rich_help_panel=MODEL)] = 8,
    max_tiles: MaxTiles = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Keep results here; go on from there.", metavar="DIR", rich_help_panel=OUTPUT)
    ] = OUT,
    expect: Annotated[str | None, typer.Option(help="paper: its listed scores beside.", rich_help_panel=OUTPUT)] = None,
    json_output: Json = False,
) -> None:
    """Run a suite of benchmarks through lmms-eval, with and without pruning; one table of all."""
    ratios, given = parse_ratios(keep_ratio, "--keep-ratio"), parse_settings(settings or [], "--keep-ratio")
    if expect not in (None, "paper"):
        raise UserError(f"--expect {expect}: unknown; give paper, or leave it out")
    wanted = choose(suite, benchmarks)
    if find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is not installed; install the extra: pip install 'ptprune[eval]'")
    if any(not benchmark.local for benchmark in wanted):
        from ptprune.checkpoints.hub import offline_where_unreachable

        offline_where_unreachable()

    with bars() as progress:
        with waiting(progress, "loading torch and transformers"):
            from ptprune.checkpoints import find as loading
            from ptprune.methods import METHODS

            loading.quiet_libraries()
            check_settings(given)
            names = parse_methods(methods, list(METHODS))

            from ptprune.lmms.log import logged
            from ptprune.lmms.processes import processes

        screen = sys.stderr
        with logged(folder / "lmms-eval.log"):
            with waiting(progress, "loading lmms-eval"):
                from ptprune.lmms import comparison
                from ptprune.lmms.rows import Rows
            arms = comparison.plan(names, ratios, given)
            include = draw(progress, wanted, folder, limit)
            directory = loading.find(model)
            about: dict[str, Any] = {
                "model": model or loading.SHIPPED,
                "suite": suite,
                "limit": limit,
                "identity": comparison.identify(directory, dtype, attention, max_tiles, limit),
            }
            if expect:
                about["expected"] = comparison.expected(wanted)
            told = partial(tell, screen)
            compared = comparison.Comparison(about, wanted, arms, limit, Rows(folder), include, on_skip=told)
            measure(progress, compared, model, device, dtype, attention, batch, max_tiles)
    if not processes().is_main_process:
        return
    compared.publish()
    document = compared.document()
    if not document["rows"]:
        raise UserError(f"--suite {suite}: none of its benchmarks could be run, for the reasons above")
    if json_output:
        print_json(document)
    else:
        show(document, folder)


def choose(suite: str, names: str | None) -> list[Benchmark]:
    """The benchmarks of a suite, or some of them.

    Raises:
        UserError: for a suite or a benchmark that is not known.
    """
    from ptprune.lmms.suites import SUITES

    if suite not in SUITES:
        raise UserError(f"--suite {suite}: unknown; give one of {', '.join(SUITES)}")
    known = {benchmark.name.lower(): benchmark for benchmark in SUITES[suite]}
    if names is None:
        return list(known.values())
    wanted = [name.strip().lower() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            told = ", ".join(benchmark.name for benchmark in known.values())
            raise UserError(f"--benchmarks {names}: {name or 'nothing'!r} is not in suite {suite}; give some of {told}")
    return [known[name] for name in dict.fromkeys(wanted)]


def draw(progress: Progress, benchmarks: list[Benchmark], folder: Path, limit: int | None) -> Path | None:
    """Write the items of local benchmarks; returns the folder of their tasks, None where there are none."""
    from ptprune.bench.items import folders
    from ptprune.cli.items import COUNT
    from ptprune.lmms.processes import processes

    tasks = folder / "items"
    sets = [benchmark.local for benchmark in benchmarks if benchmark.local]
    with processes().main_process_first():
        for name in sets:
            with waiting(progress, f"drawing {name}", limit or COUNT) as on_item:
                folders.write(name, tasks / name, limit or COUNT, on_item)
    return tasks if sets else None


def measure(
    progress: Progress,
    compared: Comparison,
    model: str | None,
    device: str,
    dtype: str,
    attention: str | None,
    batch: int,
    max_tiles: int | None,
) -> None:
    """Measure the rows that are missing; the model is loaded only where there are any."""
    from ptprune.lmms.load import load_examinee, tiles_of

    wanted = compared.missing()
    if not wanted:
        return
    with waiting(progress, f"loading {compared.about['model']}"):
        examinee = load_examinee(model, device, dtype, attention, batch)
        image_options = tiles_of(examinee, max_tiles)
        examinee.check_pruners([arm.pruner for _, arms in wanted for arm in arms])
    task = progress.add_task("", total=None)
    compared.measure(
        wanted,
        examinee,
        image_options,
        lambda benchmark, arm, questions: progress.update(
            task, advance=questions, description=f"{benchmark.name}, {arm.method} {arm.keep_ratio:g}"
        ),
    )


def tell(screen: TextIO, name: str, reason: str) -> None:
    """One line about a benchmark that is left out."""
    print(f"ptprune: {name}: skipped, {reason}", file=screen)


def show(document: dict[str, Any], folder: Path) -> None:
    """The table, for people."""
    from rich.markup import escape

    from ptprune.cli.presenting import plain_table
    from ptprune.lmms import table

    headers, lines = table.cells(document)
    shown = plain_table(*headers)
    for line in lines:
        shown.add_row(*(escape(cell) for cell in line))
    console = out()
    console.width = max(console.width, 30 * len(headers))  # lines may wrap, numbers are never cut
    console.print(f"[bold]{escape(table.title(document))}[/bold]\n")
    console.print(shown)
    if "expected" in document:
        console.print(f"\npaper, PTP: {document['expected']['about']}", style="dim")
    console.print(f"\nTable, rows and answers: {folder}", style="dim")
