"""``ptprune bench speed``: what pruning costs and brings in time and memory on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptprune.cli.console import out, print_json, progress
from ptprune.cli.options import MODEL, OUTPUT, PRUNING, Device, Json, as_option
from ptprune.errors import UserError

if TYPE_CHECKING:
    from ptprune.bench.speed import Plan

ATTENTION = ("sdpa", "eager", "flash_attention_2")
WIDTH = 160
DEFAULT_SHAPE = "internvl3-1b"


def speed(
    shape: Annotated[
        str | None,
        typer.Option(
            help="Random weights at the proportions of this model; see `ptprune cost`.",
            rich_help_panel=MODEL,
            show_default=DEFAULT_SHAPE,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A checkpoint instead: directory or Hub name.", rich_help_panel=MODEL, metavar="ID_OR_DIR"),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Fewer decoder layers than the shape has.", rich_help_panel=MODEL)
    ] = None,
    vision_layers: Annotated[
        int | None,
        typer.Option(
            help="Fewer layers of the vision tower.", rich_help_panel=MODEL, show_default="in proportion to --layers"
        ),
    ] = None,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles of the picture; more than one add a thumbnail.")] = 12,
    text_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the question.")] = 48,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at a time, all alike.")] = 1,
    methods: Annotated[
        str, typer.Option(help="One or more of `ptprune methods`, with commas.", rich_help_panel=PRUNING)
    ] = "ptp",
    keep_ratio: Annotated[float, typer.Option(help="Share of visual tokens that stay.", rich_help_panel=PRUNING)] = 0.5,
    layer: Annotated[
        int, typer.Option(help="Drop before this decoder layer; 0: before all.", rich_help_panel=PRUNING)
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="How often each arm runs.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to write in each run.")] = 8,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (float32 on a CPU, else bfloat16), float32, ...", rich_help_panel=MODEL)
    ] = "auto",
    attention: Annotated[str, typer.Option(help=", ".join(ATTENTION) + ".", rich_help_panel=MODEL)] = "sdpa",
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Write the JSON object into this file.", metavar="FILE", rich_help_panel=OUTPUT),
    ] = None,
    json_output: Json = False,
) -> None:
    """Time pruned models against the unpruned one, and against a prompt that is as short."""
    if shape is not None and model is not None:
        raise UserError("--shape and --model: give one of them")
    if attention not in ATTENTION:
        raise UserError(f"--attention {attention}: unknown; give one of {', '.join(ATTENTION)}")
    if out_file is not None and (out_file.is_dir() or not out_file.parent.is_dir()):
        raise UserError(f"--out {out_file}: cannot be written there; give a file in a directory that exists")
    with progress("loading torch and transformers") as say:
        from ptprune.bench.speed import measure
        from ptprune.checkpoints import find as loading

        loading.quiet_libraries()
        plan = make_plan(
            name=model or shape or DEFAULT_SHAPE,
            checkpoint=model is not None,
            depth=(layers, vision_layers),
            prompt=(tiles, text_tokens, batch),
            methods=methods,
            settings={"keep_ratio": keep_ratio, "layer": layer},
            rounds=rounds,
            new_tokens=new_tokens,
            place=(device, dtype, attention),
        )
        try:
            document = measure(plan, say)
        except ImportError as error:  # attention kernels are packages of their own
            raise UserError(f"--attention {attention}: not available here ({loading.first_line(error)})") from None
    if out_file is not None:
        out_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if json_output:
        print_json(document)
    else:
        _show(document)


def make_plan(
    *,
    name: str,
    checkpoint: bool,
    depth: tuple[int | None, int | None],
    prompt: tuple[int, int, int],
    methods: str,
    settings: dict[str, Any],
    rounds: int,
    new_tokens: int,
    place: tuple[str, str, str],
) -> Plan:
    """Options to a plan.

    Raises:
        UserError: for whatever cannot be measured, before a model is built.
    """
    from ptprune.bench.speed import Plan
    from ptprune.bench.subject import Setup, shortened
    from ptprune.checkpoints import find as loading
    from ptprune.shapes import SHAPES

    device = str(loading.choose_device(place[0]))
    dtype = loading.choose_dtype(place[1])
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    pruners = {method: _pruner(method, settings) for method in _names(methods)}
    tiles, text_tokens, batch = prompt
    shape = directory = full = None
    if checkpoint:
        if depth != (None, None):
            raise UserError("--layers: a checkpoint runs whole; leave it out, or give a --shape")
        directory = loading.find(name)
        layers = _depth(directory)
    else:
        if name not in SHAPES:
            raise UserError(f"--shape {name}: unknown; give one of {', '.join(SHAPES)}")
        full = SHAPES[name]
        try:
            shape = shortened(full, *depth)
        except ValueError as error:
            raise UserError(as_option(str(error))) from None
        if shape.family == "llava_next" and tiles == 1:
            raise UserError(f"--tiles 1: {name} cuts every picture into two tiles at least; give 2 or more")
        layers = shape.text.layers
    if settings["layer"] >= layers:
        raise UserError(f"--layer {settings['layer']}: too deep, {layers} decoder layers run; give 0 to {layers - 1}")
    return Plan(
        name=name,
        setup=Setup(
            shape=shape,
            directory=None if directory is None else str(directory),
            tiles=tiles,
            text_tokens=text_tokens,
            batch=batch,
            device=device,
            dtype=dtype,
            attention=place[2],
        ),
        full_layers=full.text.layers if full else None,
        full_vision_layers=full.vision.layers if full else None,
        pruners=pruners,
        rounds=rounds,
        new_tokens=new_tokens,
    )


def _names(methods: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    if not names:
        raise UserError("--methods: empty; give one or more of `ptprune methods`, with commas")
    return names


def _pruner(method: str, settings: dict[str, Any]) -> Any:
    from ptprune.cli.run import make_pruner
    from ptprune.methods import METHODS

    if method not in METHODS:
        raise UserError(f"--methods {method}: unknown; give one of {', '.join(METHODS)}")
    return make_pruner(method, settings)


def _depth(directory: Path) -> int:
    """Decoder layers of a checkpoint."""
    from transformers import AutoConfig

    from ptprune.checkpoints import find as loading

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        return int(config.get_text_config().num_hidden_layers)
    except Exception as error:  # whatever a broken configuration leads the loader to
        raise UserError(f"--model {directory}: {loading.first_line(error)}") from None


def _show(document: dict[str, Any]) -> None:
    from ptprune.cli.presenting import count, duration, plain_table, size

    console = out()
    console.width = max(console.width, WIDTH)  # cut columns would say nothing
    depth = ""
    if document["layers"] is not None:
        depth = (
            f", {document['layers']} of {document['layers_of_shape']} decoder layers, "
            f"{document['vision_layers']} of {document['vision_layers_of_shape']} in the vision tower"
        )
    console.print(f"[bold]{document['shape']}[/bold]{depth}")
    console.print(
        f"{document['machine']}, {document['device']}, {document['threads']} threads, {document['dtype']}, "
        f"{document['attention']}, batch {document['batch']}; medians of {document['rounds']} rounds\n",
        style="dim",
    )
    table = plain_table("", "tokens", "vision", "select", "prefill", "first token", "decode", "peak", "KV", "MACs")
    for row in document["rows"]:
        times = (row[name]["median"] for name in ("vision_s", "select_s", "prefill_s", "ttft_s", "decode_s_per_token"))
        table.add_row(
            row["method"] or row["arm"],
            str(row["tokens"]),
            *map(duration, times),
            "-" if row["peak_bytes"] is None else size(row["peak_bytes"]),
            size(row["kv_bytes"]),
            "-" if row["macs"] is None else count(row["macs"]["first_token"]),
        )
    console.print(table)
    console.print()
    table = plain_table("ratios", "prefill", "to ideal", "select share", "first token", "decode", "peak", "KV")
    for method, ratios in document["ratios"].items():
        share = ratios["select_share"]
        table.add_row(
            method,
            *(_median(ratios[name]) for name in ("prefill_vs_unpruned", "prefill_vs_ideal")),
            f"{share['median']:.2%} ({share['min']:.2%} - {share['max']:.2%})",
            *(_median(ratios[name]) for name in ("ttft_vs_unpruned", "decode_vs_unpruned")),
            "-" if ratios["peak"] is None else f"{ratios['peak']:.2f}",
            f"{ratios['kv']:.3f}",
        )
    console.print(table)


def _median(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['min']:.3f} - {ratio['max']:.3f})"
