"""``ptprune cost``: what a prompt costs before and after pruning, from a configuration alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptprune.bounds import MAX_LAYERS, MAX_MARGIN, MAX_TILES, MAX_TOKENS, MAX_VALUE_BYTES
from ptprune.cli import options
from ptprune.cli.console import out, print_json, quiet_libraries
from ptprune.errors import PtpruneError, SettingError, first_line

if TYPE_CHECKING:
    from ptprune.shapes import ModelShape

ROWS = {
    "vision": "vision",
    "projector": "projector",
    "select": "select",
    "prefill": "prefill",
    "lm_head": "output head",
    "first_token": "up to the first token",
    "decode_per_token": "decode, a token",
}


def cost(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A known shape, a checkpoint directory, or a Hub name. Without it, the known shapes are listed.",
        ),
    ] = None,
    tiles: options.Tiles = 12,
    text_tokens: Annotated[int, typer.Option(min=0, max=MAX_TOKENS, help="Prompt tokens that are not visual.")] = 64,
    keep_ratio: Annotated[float, typer.Option(help="Share of visual tokens that stay.")] = 0.5,
    layer: Annotated[
        int, typer.Option(min=0, max=MAX_LAYERS, help="Drop before this decoder layer; 0: before all.")
    ] = 2,
    first_ratio: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share that ptp's first cut leaves at least: below it, the rest is dropped later."
        ),
    ] = 0.25,
    second_layer: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_LAYERS, help="Where the rest is dropped.", show_default="halfway to the end"),
    ] = None,
    bytes_per_value: Annotated[
        int, typer.Option(min=1, max=MAX_VALUE_BYTES, help="Of the KV cache; 2: bfloat16, 4: float32.")
    ] = 2,
    tiles_encoded: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_TILES, help="Tiles that are encoded, besides the thumbnail.", show_default="all"),
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", help="The others get the features of one of them, and are not dropped.")
    ] = False,
    vision_layer: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_LAYERS, help="Drop patches before this layer of the vision tower.", show_default="nowhere"
        ),
    ] = None,
    vision_margin: Annotated[
        float,
        typer.Option(min=1, max=MAX_MARGIN, help="So many times a tile's share of the kept tokens pass that layer."),
    ] = 1.25,
    vision_floor: Annotated[
        float, typer.Option(min=0, max=1, help="At least this share of a tile's tokens pass that layer.")
    ] = 0.0,
    json_output: options.PlainJson = False,
) -> None:
    """Count multiply-accumulates, FLOPs and KV bytes, pruned and unpruned, without weights."""
    if model is None:
        return _list_shapes(json_output)
    from ptprune.cost import Encoding, Prompt, compared_costs

    encoding = Encoding(tiles_encoded, vision_layer, vision_margin, background, vision_floor)
    prompt = Prompt(tiles, text_tokens)
    cuts = layer, bytes_per_value, encoding, first_ratio, second_layer
    document = compared_costs(find_shape(model), prompt, keep_ratio, *cuts)
    if json_output:
        print_json(document)
    else:
        _show(document)


def find_shape(model: str) -> ModelShape:
    """A known shape by name, or that of a checkpoint. Raises SettingError where there is none that can be counted."""
    from ptprune.shapes import SHAPES, ModelShape

    if model in SHAPES:
        return SHAPES[model]
    from ptprune.checkpoints import Checkpoint

    quiet_libraries()
    try:
        checkpoint = Checkpoint.find(model, weights=False)
    except SettingError as error:
        raise SettingError(f"{error}; known shapes: {', '.join(SHAPES)}") from None
    try:
        return ModelShape.from_config(checkpoint.config(), model)
    except PtpruneError:
        raise
    except Exception as error:  # whatever a broken configuration leads to
        raise SettingError(f"model {model}: {first_line(error)}") from None


def _list_shapes(json_output: bool) -> None:
    """The shapes that are known by name, and how large they are."""
    from ptprune.results.table import terminal
    from ptprune.shapes import SHAPES

    if json_output:
        return print_json({"shapes": {name: asdict(shape) for name, shape in SHAPES.items()}})
    headers = ("shape", "decoder layers", "width", "vision layers", "visual tokens a tile")
    rows = [
        (name, str(shape.text.layers), str(shape.text.width), str(shape.vision.layers), str(shape.tile_tokens))
        for name, shape in SHAPES.items()
    ]
    console = out()
    console.print(terminal(headers, rows))
    console.print("--model takes one of these names, or any InternVL or LLaVA-NeXT checkpoint.", style="dim")


def _show(document: dict[str, Any]) -> None:
    from ptprune.results.table import count, ratio, size, terminal

    visual, length = document["visual_tokens"], document["sequence_length"]
    unpruned, pruned = document["unpruned"], document["pruned"]
    thumbnail = " and a thumbnail" if document["thumbnail"] else ""
    console = out()
    cuts = f"{visual['before']} -> {visual['after']}[/bold] visual tokens before layer {document['layer']}"
    if visual["between"] is not None:
        cuts = (
            f"{visual['before']} -> {visual['between']} -> {visual['after']}[/bold] visual tokens before layers "
            f"{document['layer']} and {document['second_layer']}"
        )
    console.print(
        f"[bold]{document['model']}[/bold]: {document['tiles']} tiles{thumbnail}, [bold]{cuts}, "
        f"{document['text_tokens']} text tokens\n"
    )
    rows: list[tuple[str, Any, int, int]] = []
    rows += [(name, count, unpruned[phase]["macs"], pruned[phase]["macs"]) for phase, name in ROWS.items()]
    made = document["encoded_tiles"], document["encoded_tokens"]
    rows += [("tiles encoded", str, made[0]["before"], made[0]["after"])]
    rows += [("tokens encoded", str, made[1]["before"], made[1]["after"])]
    rows += [("prompt tokens", str, length["before"], length["after"])]
    rows += [("KV cache", size, unpruned["kv_bytes"], pruned["kv_bytes"])]
    cells = [(name, unit(b) if b else "-", unit(a), ratio(a, b)) for name, unit, b, a in rows]
    console.print(terminal(("multiply-accumulates", "unpruned", "pruned", "ratio"), cells))
    console.print("FLOPs are twice the multiply-accumulates; attention is counted full, not causal.", style="dim")
