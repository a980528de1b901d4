"""``ptprune bench speed``: what pruning costs and brings in time and memory on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.bounds import MAX_BATCH, MAX_LAYERS, MAX_ROUNDS, MAX_TEXT, MAX_TILES
from ptprune.cli import options
from ptprune.cli.console import out, print_json, quiet_libraries, working
from ptprune.cli.plugin import load
from ptprune.errors import UserError

if TYPE_CHECKING:
    from ptprune.results.rows import SpeedResults

ATTENTION = ("sdpa", "eager", "flash_attention_2")
WIDTH = 160
DEFAULT_SHAPE = "internvl3-1b"


def speed(
    shape: Annotated[
        str | None,
        options.model(help="Random weights of this model's shape; see `ptprune cost`.", show_default=DEFAULT_SHAPE),
    ] = None,
    model: Annotated[
        str | None, options.model(help="A checkpoint instead: directory or Hub name.", metavar="ID_OR_DIR")
    ] = None,
    layers: Annotated[
        int | None, options.model(min=1, max=MAX_LAYERS, help="Fewer decoder layers than the shape has.")
    ] = None,
    vision_layers: Annotated[
        int | None,
        options.model(
            min=1, max=MAX_LAYERS, help="Fewer layers of the vision tower.", show_default="in proportion to --layers"
        ),
    ] = None,
    tiles: Annotated[
        int, typer.Option(min=1, max=MAX_TILES, help="Tiles of the picture; more than one add a thumbnail.")
    ] = 12,
    text_tokens: Annotated[int, typer.Option(min=1, max=MAX_TEXT, help="Tokens of the question.")] = 48,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Prompts at a time, all alike.")] = 1,
    methods: Annotated[str, options.pruning(help="One or more of `ptprune methods`, with commas.")] = "ptp",
    keep_ratio: Annotated[float, options.pruning(help="Share of visual tokens that stay.")] = 0.5,
    layer: Annotated[
        int, options.pruning(min=0, max=MAX_LAYERS, help="Drop before this decoder layer; 0: before all.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, max=MAX_ROUNDS, help="How often each arm runs.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, max=MAX_TEXT, help="Tokens to write in each run.")] = 8,
    more: options.Settings = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    dtype: Annotated[str, options.model(help="auto (float32 on a CPU, else bfloat16), float32, ...")] = "auto",
    attention: Annotated[str, options.model(help=", ".join(ATTENTION) + ".")] = "sdpa",
    out_file: Annotated[
        Path | None, options.output("--out", help="Write the JSON object into this file.", metavar="FILE")
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Time pruned models against the unpruned one, and against a prompt that is as short."""
    if shape is not None and model is not None:
        raise UserError("--shape and --model: give one of them")
    if attention not in ATTENTION:
        raise UserError(f"--attention {attention}: unknown; give one of {', '.join(ATTENTION)}")
    given = options.parse_settings(more, "--keep-ratio")
    with working("loading torch and transformers") as work:
        from ptprune.bench.speed import measure
        from ptprune.bench.subject import Setup, choose_setup
        from ptprune.checkpoints import choose_device, choose_dtype
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
        target, precision = str(choose_device(device)), choose_dtype(dtype)
        wanted = Setup(None, None, tiles, text_tokens, batch, target, precision, attention, model or "")
        chosen = None if model else shape or DEFAULT_SHAPE
        setup = choose_setup(wanted, chosen, layers, vision_layers, pruners.values())
        results = measure(setup, pruners, rounds, new_tokens, work.say)
    if out_file is not None:
        save(out_file, results)
    if json_output:
        print_json(as_json(results))
    else:
        _show(results)


def _show(results: SpeedResults) -> None:
    from ptprune.bench.report.speed import arms_table, depth, ratios_table
    from ptprune.results.table import medians, terminal

    console = out(WIDTH)
    console.print(f"[bold]{results.shape}[/bold]{'' if results.layers is None else f', {depth(results)}'}")
    console.print(
        f"{results.runs[0].machine}, {results.device}, {results.threads} threads, {results.dtype}, "
        f"{results.attention}, batch {results.batch}; {medians(results.rounds)}\n",
        style="dim",
    )
    for headers, *rows in (arms_table(results), *(ratios_table(results, method) for method in results.ratios)):
        console.print(terminal(headers, rows))
        console.print()
