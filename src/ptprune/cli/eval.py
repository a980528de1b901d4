"""``ptprune eval``: a suite of benchmarks through lmms-eval, with and without pruning, as one table."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.bounds import MAX_BATCH, MAX_ITEMS
from ptprune.cli import options
from ptprune.cli.console import out, print_json, quiet_libraries, working
from ptprune.cli.items import COUNT
from ptprune.cli.plugin import load
from ptprune.errors import UserError
from ptprune.lmms.suites import choose

if TYPE_CHECKING:
    from ptprune.results.rows import SuiteResults

RATIOS = "1,.5"
OUT = Path("ptprune-eval")


def eval(
    suite: Annotated[str, typer.Option(help="ptp13, hires or local.")] = "ptp13",
    benchmarks: Annotated[
        str | None, typer.Option(help="Only these of the suite.", metavar="NAMES", show_default="all")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=MAX_ITEMS, help="Only the first questions of each.")] = None,
    keep_ratio: Annotated[str, options.pruning(help="Shares of visual tokens that stay; 1: unpruned.")] = RATIOS,
    methods: Annotated[str, options.pruning(help="Names with commas between.")] = "ptp",
    settings: options.Settings = None,
    plugin: options.Plugin = None,
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    attention: options.Attention = None,
    batch: Annotated[int, options.model(min=1, max=MAX_BATCH, help="Questions a batch.")] = 8,
    max_tiles: options.MaxTiles = None,
    folder: Annotated[Path, options.output("--out", help="Keep results here; go on from there.", metavar="DIR")] = OUT,
    expect: Annotated[str | None, options.output(help="paper: its listed scores beside.")] = None,
    json_output: options.Json = False,
) -> None:
    """Run a suite of benchmarks through lmms-eval, with and without pruning; one table of all."""
    ratios, given = options.parse_ratios(keep_ratio, "--keep-ratio"), options.parse_settings(settings, "--keep-ratio")
    if expect not in (None, "paper"):
        raise UserError(f"--expect {expect}: unknown; give paper, or leave it out")
    wanted = choose(suite, benchmarks)
    if find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is not installed; install the extra: pip install 'ptprune[eval]'")
    if any(not benchmark.local for benchmark in wanted):
        from ptprune.checkpoints.hub import offline_where_unreachable

        offline_where_unreachable()

    screen = sys.stderr  # what lmms-eval says goes into a log
    with working("loading torch and transformers") as work:
        from ptprune.asking.loaded import LoadedModel
        from ptprune.bench.items.folder import write
        from ptprune.checkpoints import Checkpoint, choose_dtype
        from ptprune.files import make_folder
        from ptprune.lmms.processes import logged, own_device, processes
        from ptprune.methods import METHODS
        from ptprune.results.file import as_json, fingerprint, run_of
        from ptprune.results.rows import SuiteResults

        quiet_libraries()
        identity = load(plugin)
        read = options.read_settings(given)
        names = options.parse_methods(methods, list(METHODS))
        with logged(folder / "lmms-eval.log"):
            work.say("loading lmms-eval")
            from ptprune.lmms import comparison

            candidates = comparison.compare(names, ratios, read)
            sets = [benchmark.local for benchmark in wanted if benchmark.local]
            with processes().main_process_first():
                if sets:
                    make_folder(folder / "items", f"--out {folder}: items")
                for name in sets:
                    work.say(f"drawing {name}", limit or COUNT)
                    write(name, folder / "items" / name, limit or COUNT, work.done)
            target, checkpoint = own_device(device), Checkpoint.find(model)
            run = run_of({"model": fingerprint(checkpoint.directory), **identity}, str(target), "lmms-eval")
            run.identity |= {"dtype": choose_dtype(dtype), "attention": attention, "max_tiles": max_tiles}
            run.identity |= {"limit": limit, **{name: run.versions[name] for name in ("lmms-eval", "transformers")}}
            results = SuiteResults(
                model=checkpoint.name,
                suite=suite,
                limit=limit,
                runs=[run],
                expected=comparison.expected(wanted) if expect else None,
            )
            include = folder / "items" if sets else None

            def tell(name: str, reason: str) -> None:
                print(f"ptprune: {name}: skipped, {reason}", file=screen)

            compared = comparison.Comparison(results, wanted, candidates, folder, include, on_skip=tell)
            if missing := compared.missing():
                work.say(f"loading {checkpoint.name}")
                loaded = LoadedModel.load(
                    checkpoint, target, dtype, attention=attention, batch=batch, max_tiles=max_tiles
                )
                loaded.check_pruners([one.pruner for _, candidates in missing for one in candidates])
                work.say("")
                compared.measure(missing, loaded, work.advance)
    if not processes().is_main_process:
        return
    compared.publish()
    asked = compared.document()
    if not asked.rows:
        raise UserError(f"--suite {suite}: none of its benchmarks could be run, for the reasons above")
    if json_output:
        print_json(as_json(asked))
    else:
        show(asked, folder)


def show(results: SuiteResults, folder: Path) -> None:
    """The table, for people."""
    from rich.markup import escape

    from ptprune.lmms import table
    from ptprune.results.table import terminal

    headers, lines = table.cells(results)
    console = out(30 * len(headers))
    console.print(f"[bold]{escape(table.title(results))}[/bold]\n")
    console.print(terminal(headers, [[escape(cell) for cell in line] for line in lines]))
    if results.expected:
        console.print(f"\npaper, PTP: {results.expected['about']}", style="dim")
    console.print(f"\nTable, rows and answers: {folder}", style="dim")
