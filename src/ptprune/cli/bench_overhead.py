"""``ptprune bench overhead``: operations and host reads that pruning adds, counted on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.bounds import MAX_BATCH
from ptprune.cli import options
from ptprune.cli.bench_speed import ATTENTION, DEFAULT_SHAPE, WIDTH
from ptprune.cli.console import out, print_json, quiet_libraries, working
from ptprune.cli.plugin import load
from ptprune.errors import UserError

if TYPE_CHECKING:
    from ptprune.results.rows import OverheadResults


def overhead(
    shape: Annotated[
        str | None,
        options.model(help="A narrow model with this model's layers and tiles.", show_default=DEFAULT_SHAPE),
    ] = None,
    model: Annotated[
        str | None, options.model(help="A checkpoint instead: directory or Hub name.", metavar="ID_OR_DIR")
    ] = None,
    layers: options.Layers = None,
    tiles: options.Tiles = 12,
    text_tokens: options.QuestionTokens = 48,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Prompts at a time, each with a picture.")] = 1,
    methods: Annotated[str, options.pruning(help="One or more of `ptprune methods`, with commas.")] = "ptp",
    keep_ratio: Annotated[float, options.pruning(help="Share of visual tokens that stay.")] = 0.5,
    layer: options.CutLayer = 2,
    more: options.Settings = None,
    plugin: options.Plugin = None,
    device: options.Device = "cpu",
    attention: Annotated[str, options.model(help=", ".join(ATTENTION) + ".")] = "sdpa",
    out_file: Annotated[
        Path | None, options.output("--out", help="Write the JSON object into this file.", metavar="FILE")
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Count the operations and the host reads that pruning adds to a prefill and to a decoding step."""
    if shape is not None and model is not None:
        raise UserError("--shape and --model: give one of them")
    if attention not in ATTENTION:
        raise UserError(f"--attention {attention}: unknown; give one of {', '.join(ATTENTION)}")
    given = options.parse_settings(more, "--keep-ratio")
    with working("loading torch and transformers") as work:
        from ptprune.bench.overhead import measure
        from ptprune.bench.subject import Setup, choose_setup
        from ptprune.checkpoints import choose_device
        from ptprune.files import check_writable
        from ptprune.methods import METHODS, make_pruner
        from ptprune.results.file import as_json, save

        if out_file is not None:
            check_writable(out_file, "--out")
        quiet_libraries()
        load(plugin)
        names = options.parse_methods(methods, list(METHODS))
        settings = {"keep_ratio": keep_ratio, "layer": layer}
        pruners = options.with_settings({name: make_pruner(name, settings) for name in names}, given)
        target = str(choose_device(device))
        wanted = Setup(None, None, tiles, text_tokens, batch, target, "float32", attention, model or "")
        # what pruning adds does not depend on the depth of the tower
        chosen, vision_layers = (None, None) if model else (shape or DEFAULT_SHAPE, 2)
        setup = choose_setup(wanted, chosen, layers, vision_layers, pruners.values())
        results = measure(setup, pruners, work.say)
    if out_file is not None:
        save(out_file, results)
    if json_output:
        print_json(as_json(results))
    else:
        _show(results)


def _show(results: OverheadResults) -> None:
    from ptprune.results.table import terminal

    console = out(WIDTH)
    console.print(f"[bold]{results.shape}[/bold], {results.layers} decoder layers, batch {results.batch}")
    console.print(
        f"added to {results.unpruned} operations of the unpruned prefill; reads make a GPU wait\n", style="dim"
    )
    phases = list(dict.fromkeys(phase for row in results.rows for phase in row.operations_by_phase))
    rows = [
        [
            row.method,
            str(row.operations),
            str(row.reads),
            *(str(row.operations_by_phase.get(phase, 0)) for phase in phases),
            str(row.decode_operations),
        ]
        for row in results.rows
    ]
    console.print(terminal(["", "operations", "reads", *phases, "a decoding step"], rows))
    if not results.device.startswith("cuda"):
        console.print("\nsynchronisations and microseconds: not measured: no CUDA device", style="dim")
        return
    for row in results.rows:
        console.print(
            f"{row.method} adds {row.synchronisations} synchronisations and {row.microseconds:.0f} microseconds"
        )
