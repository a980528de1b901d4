"""``ptprune run``: a picture and a question in, an answer out, and what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptprune.cli.console import Work, out, print_json, quiet_libraries, working
from ptprune.cli.options import (
    MODEL,
    OUTPUT,
    PRUNING,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxTilesOption,
    ModelOption,
)
from ptprune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ptprune.asking.answer import Answer
    from ptprune.pruner import TokenPruner
    from ptprune.report import ImageReport

WARM_UP_TOKENS = 2  # enough to run prefill and decode once


def run(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="One or more pictures.", show_default=False)],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask.", show_default=False)],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.", rich_help_panel=MODEL)] = 64,
    max_tiles: MaxTilesOption = None,
    together: Annotated[
        bool, typer.Option("--together", help="All pictures in one prompt.", rich_help_panel=MODEL)
    ] = False,
    method: Annotated[str, typer.Option(help="See `ptprune methods`.", rich_help_panel=PRUNING)] = "ptp",
    keep_ratio: Annotated[
        float | None,
        typer.Option(help="Share of visual tokens that stay.", rich_help_panel=PRUNING, show_default="0.5"),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Drop before this decoder layer; 0: before all.", rich_help_panel=PRUNING)
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the question against saliency, 0 to 1.", rich_help_panel=PRUNING)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Larger: more even budgets over tiles.", rich_help_panel=PRUNING)
    ] = None,
    thumbnail: Annotated[
        str | None, typer.Option(help="ratio, whole or region: how the thumbnail is cut.", rich_help_panel=PRUNING)
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens a side of a window, where a model has no tiles.", rich_help_panel=PRUNING)
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="original or compact position ids.", rich_help_panel=PRUNING)
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer without pruning too, and compare.", rich_help_panel=OUTPUT)
    ] = False,
    overlay: Annotated[
        Path | None,
        typer.Option(help="Draw the kept tokens into this file.", metavar="OUT.png", rich_help_panel=OUTPUT),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Answer a question about pictures with most visual tokens pruned."""
    if not question.strip():
        raise UserError('--question: empty; give a question, such as -q "What is written on the sign?"')
    overlays = overlay_paths(overlay, len(images))

    from ptprune.pictures import open_picture

    pictures = [open_picture(path) for path in images]
    settings = {
        "keep_ratio": keep_ratio,
        "layer": layer,
        "alpha": alpha,
        "temperature": temperature,
        "thumbnail": thumbnail,
        "window": window,
        "positions": positions,
    }
    with working("loading torch and transformers") as work:
        from ptprune.checkpoints import Checkpoint
        from ptprune.checkpoints.place import choose_device, choose_dtype
        from ptprune.checkpoints.tiling import tile_options
        from ptprune.methods import make_pruner

        quiet_libraries()
        pruner = make_pruner(method, settings)
        target, precision = choose_device(device), choose_dtype(dtype)
        checkpoint = Checkpoint.find(model)
        work.say(f"loading {checkpoint.name}")
        processor = checkpoint.processor()
        image_options = tile_options(checkpoint.family.name, processor, max_tiles)  # before the weights are read
        loaded = checkpoint.model(target, precision)

        groups = [list(range(len(images)))] if together else [[number] for number in range(len(images))]
        documents = []
        for group in groups:
            shown = [pictures[i] for i in group]
            document, kept = _answer(
                loaded, processor, pruner, shown, question, max_new_tokens, image_options, compare, work
            )
            about = {"model": checkpoint.name, "question": question, "pictures": [str(images[i]) for i in group]}
            document = {**about, **document}
            if overlays:
                document["overlay"] = [str(overlays[i]) for i in group]
                for number, report in zip(group, kept, strict=True):
                    _save_overlay(pictures[number], report, overlays[number])
            documents.append(document)

    if json_output:
        print_json(documents[0] if len(documents) == 1 else {"images": documents})
        return
    from ptprune.cli.run_table import show_run

    for document in documents:
        show_run(out(), document)


def overlay_paths(overlay: Path | None, count: int) -> list[Path]:
    """One file a picture: OUT.png, or OUT-1.png, OUT-2.png, ...

    Raises:
        UserError: where it could not be written, before anything is computed.
    """
    if overlay is None:
        return []
    from PIL import Image as formats

    writable = [suffix for suffix, kind in formats.registered_extensions().items() if kind in formats.SAVE]
    if overlay.suffix.lower() not in writable:
        raise UserError(f"--overlay {overlay}: not a picture's name; give one that ends in .png, .jpg or .webp")
    if overlay.is_dir() or not overlay.parent.is_dir():
        raise UserError(f"--overlay {overlay}: cannot be written there; give a file in a directory that exists")
    if count == 1:
        return [overlay]
    return [overlay.with_name(f"{overlay.stem}-{number + 1}{overlay.suffix}") for number in range(count)]


def _answer(
    model: Any,
    processor: Any,
    pruner: TokenPruner,
    pictures: list[Image],
    question: str,
    max_new_tokens: int,
    image_options: dict[str, Any],
    compare: bool,
    work: Work,
) -> tuple[dict[str, Any], list[ImageReport]]:
    """The JSON document of one prompt, and what was kept of each picture."""
    from ptprune.asking.answer import ask
    from ptprune.asking.document import run_document
    from ptprune.asking.prompt import check_length, make_prompt

    work.say("cutting the pictures into tiles")
    inputs = make_prompt(model, processor, pictures, question, image_options)
    check_length(model, inputs, max_new_tokens)

    def answer(arm: TokenPruner | None, limit: int, doing: str) -> Answer:
        return ask(model, processor, inputs, arm, limit, lambda passes: work.say(f"{doing}: {passes} tokens"))

    if compare:  # the first call initialises kernels and buffers: neither arm shall pay for it
        for arm in (None, pruner):
            answer(arm, min(WARM_UP_TOKENS, max_new_tokens), "warming up")
    unpruned = answer(None, max_new_tokens, "answering without pruning") if compare else None
    pruned = answer(pruner, max_new_tokens, "answering with pruning")
    report = pruner.report
    assert report is not None
    return run_document(pruned, unpruned, report.to_dict()), report.images


def _save_overlay(picture: Image, report: ImageReport, path: Path) -> None:
    from ptprune.draw import draw_overlay

    try:
        draw_overlay(picture, report).save(path)
    except OSError as error:
        raise UserError(f"--overlay {path}: cannot be written ({error.strerror or error})") from None
