"""``ptprune bench speed``: what pruning costs and brings in time and memory on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.bounds import MAX_BATCH, MAX_LAYERS, MAX_ROUNDS, MAX_SEED, MAX_TEXT
from ptprune.cli import options
from ptprune.cli.console import out, print_json, quiet_libraries, working
from ptprune.cli.plugin import load
from ptprune.errors import UserError

if TYPE_CHECKING:
    from ptprune.bench.arms import Arm
    from ptprune.bench.picture import Picture
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
    layers: options.Layers = None,
    vision_layers: Annotated[
        int | None,
        options.model(
            min=1, max=MAX_LAYERS, help="Fewer layers of the vision tower.", show_default="in proportion to --layers"
        ),
    ] = None,
    tiles: options.Tiles = 12,
    text_tokens: options.QuestionTokens = 48,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Prompts at a time, all alike.")] = 1,
    methods: Annotated[str, options.pruning(help="One or more of `ptprune methods`, with commas.")] = "ptp",
    keep_ratio: Annotated[str, options.pruning(help="Shares of visual tokens that stay, with commas.")] = ".5",
    layer: options.CutLayer = 0,
    encoder: Annotated[
        str | None,
        options.pruning(
            metavar="NAMES",
            help="Arms that differ in what is encoded: all, or some of llm, salient, patches, both, random, fewer.",
            show_default="as --set says",
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(help="noise, or a drawn scene.", show_default="scene where tiles are chosen, else noise"),
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Share of a scene's tiles that hold something.", show_default=".5,.5"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the picture.")] = 0,
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
    given, ratios = options.parse_settings(more, "--keep-ratio"), options.parse_ratios(keep_ratio, "--keep-ratio")
    with working("loading torch and transformers") as work:
        from ptprune.bench.encoders import pruned_arms
        from ptprune.bench.encodings import ENCODERS
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
        pruners = options.with_settings({name: make_pruner(name, {"layer": layer}) for name in names}, given)
        encoders = [] if encoder is None else _encoders(encoder, ENCODERS)
        target, precision = str(choose_device(device)), choose_dtype(dtype)
        wanted = Setup(None, None, tiles, text_tokens, batch, target, precision, attention, model or "")
        chosen = None if model else shape or DEFAULT_SHAPE
        setup = choose_setup(wanted, chosen, layers, vision_layers, pruners.values())
        arms = pruned_arms(pruners, ratios, encoders, setup)
        setup = replace(setup, picture=_picture(picture, fill, seed, arms))
        results = measure(setup, arms, rounds, new_tokens, work.say)
    if out_file is not None:
        save(out_file, results)
    if json_output:
        print_json(as_json(results))
    else:
        _show(results)


def _encoders(text: str, known: Sequence[str]) -> list[str]:
    """Names of ``ENCODERS``, each once, in their order."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*known, "all"):
            raise UserError(
                f"--encoder {text}: {name or 'nothing'!r} is unknown; give all or some of {', '.join(known)}"
            )
    return [name for name in known if name in names or "all" in names]


def _picture(kind: str | None, fill: str | None, seed: int, arms: Sequence[Arm]) -> Picture:
    """The picture that the options ask for. Where tiles are chosen, they have to differ: a scene."""
    from ptprune.bench.picture import KINDS, NOISE, SCENE, Picture

    if kind is None:
        chosen = any(arm.pruner is not None and arm.pruner.tiles != "all" for arm in arms)
        kind = SCENE if chosen or fill is not None else NOISE
    if kind not in KINDS:
        raise UserError(f"--picture {kind}: unknown; give {' or '.join(KINDS)}")
    if fill is None:
        return Picture(kind, seed=seed)
    if kind == NOISE:
        raise UserError("--fill: all tiles of noise are alike; give --picture scene")
    try:
        low, high = (float(part) for part in fill.split(","))
    except ValueError:
        raise UserError(f"--fill {fill}: give two shares with a comma, such as .3,.7") from None
    if not 0 <= low <= high <= 1:
        raise UserError(f"--fill {fill}: out of range; give two shares from 0 to 1, the smaller one first")
    return Picture(kind, (low, high), seed)


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
