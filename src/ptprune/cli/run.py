"""``ptprune run``: answer a question about pictures, and report what pruning kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptprune.bounds import MAX_PIXELS, MAX_TOKENS, MAX_WINDOW
from ptprune.cli import options
from ptprune.cli.console import note, out, print_json, quiet_libraries, working
from ptprune.cli.plugin import load
from ptprune.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


def run(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="One or more pictures.", show_default=False)],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask.", show_default=False)],
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_new_tokens: Annotated[int, options.model(min=1, max=MAX_TOKENS, help="Longest answer.")] = 64,
    max_tiles: options.MaxTiles = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    together: Annotated[bool, options.model("--together", help="All pictures in one prompt.")] = False,
    method: Annotated[str, options.pruning(help="See `ptprune methods`.")] = "ptp",
    keep_ratio: Annotated[
        float | None, options.pruning(help="Share of visual tokens that stay.", show_default="0.5")
    ] = None,
    keep_tokens: Annotated[
        int | None, options.pruning(max=MAX_TOKENS, help="Visual tokens a picture that stay, instead of a share.")
    ] = None,
    layer: Annotated[int | None, options.pruning(help="Drop before this decoder layer; 0: before all.")] = None,
    alpha: Annotated[float | None, options.pruning(help="Weight of the question against saliency, 0 to 1.")] = None,
    temperature: Annotated[float | None, options.pruning(help="Larger: more even budgets over tiles.")] = None,
    thumbnail: Annotated[str | None, options.pruning(help="ratio, whole or region: how the thumbnail is cut.")] = None,
    window: Annotated[
        int | None, options.pruning(max=MAX_WINDOW, help="Tokens a side of a window, where a model has no tiles.")
    ] = None,
    positions: Annotated[str | None, options.pruning(help="original or compact position ids.")] = None,
    tiles: Annotated[
        str | None,
        options.pruning(
            help="Which tiles are encoded: all, salient or a number.",
            show_default="salient, with the background's features for the others",
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        options.pruning("--set", metavar="NAME=VALUE", help="Any setting of `ptprune methods`; may be repeated."),
    ] = None,
    plugin: options.Plugin = None,
    compare: Annotated[bool, options.output("--compare", help="Answer without pruning too, and compare.")] = False,
    overlay: Annotated[
        Path | None, options.output(help="Draw the kept tokens into this file.", metavar="OUT.png")
    ] = None,
    explain: Annotated[
        Path | None, options.output(help="Draw each level as a heat map into this file.", metavar="OUT.png")
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Answer a question about pictures with most visual tokens pruned."""
    if not question.strip():
        raise UserError('--question: empty; give a question, such as -q "What is written on the sign?"')
    overlays = drawing_paths(overlay, images, "--overlay")
    explanations = drawing_paths(explain, images, "--explain")

    from ptprune.pictures import open_pictures

    pictures = open_pictures(images, max_pixels, note)
    settings = {
        "keep_ratio": keep_ratio,
        "keep_tokens": keep_tokens,
        "layer": layer,
        "alpha": alpha,
        "temperature": temperature,
        "thumbnail": thumbnail,
        "window": window,
        "positions": positions,
    }
    given = options.parse_settings(more, None, method)
    for name in given.get(method, {}):
        if (settings | {"tiles": tiles}).get(name) is not None:
            raise UserError(f"--set {name}: --{name.replace('_', '-')} says it; give one of them")
    if keep_ratio is not None and (keep_tokens is not None or "keep_tokens" in given.get(method, {})):
        raise UserError("--keep-tokens and --keep-ratio: give one of them")
    for other in given.keys() - {method}:
        raise UserError(f"--set {other}.{next(iter(given[other]))}: the method is {method}; leave it out")
    with working("loading torch and transformers") as work:
        from ptprune.asking.answer import run_document
        from ptprune.asking.loaded import LoadedModel
        from ptprune.checkpoints import Checkpoint, choose_device, choose_dtype
        from ptprune.draw import draw_overlay
        from ptprune.encoding import tells_encoding
        from ptprune.explain import draw_explanation
        from ptprune.files import replacing, writing
        from ptprune.methods import make_pruner

        quiet_libraries()
        load(plugin)
        pruner = make_pruner(method, settings | {"tiles": options.read_tiles(tiles)})
        pruner = replace(pruner, **options.read_settings(given).get(method, {}))
        target, precision = choose_device(device), choose_dtype(dtype)
        checkpoint = Checkpoint.find(model)
        work.say(f"loading {checkpoint.name}")
        loaded = LoadedModel.load(checkpoint, target, precision, max_tiles=max_tiles)
        if tiles is None and not tells_encoding(given.get(method, {})):
            pruner = loaded.sparing(pruner)

        groups = [list(range(len(images)))] if together else [[number] for number in range(len(images))]
        documents = []
        for group in groups:
            shown = [pictures[i] for i in group]
            found, kept = run_document(loaded, pruner, shown, question, max_new_tokens, compare, work.say)
            document: dict[str, Any] = {"model": checkpoint.name, "question": question}
            document |= {"pictures": [str(images[i]) for i in group], **found}
            if overlays:
                document["overlay"] = [str(overlays[i]) for i in group]
                for i, report in zip(group, kept, strict=True):
                    with writing(f"--overlay {overlays[i]}"), replacing(overlays[i]) as beside:
                        draw_overlay(pictures[i], report, question, found["answer"]).save(beside)
            if explanations:
                document["explain"] = [str(explanations[i]) for i in group]
                for i, report in zip(group, kept, strict=True):
                    with writing(f"--explain {explanations[i]}"), replacing(explanations[i]) as beside:
                        draw_explanation(pictures[i], report).save(beside)
            documents.append(document)

    if json_output:
        print_json(documents[0] if len(documents) == 1 else {"images": documents})
        return
    for document in documents:
        show(document)


def drawing_paths(path: Path | None, images: Sequence[Path], option: str) -> list[Path]:
    """One file a picture: OUT.png, or OUT-1.png, OUT-2.png, ... Raises UserError where one could not be written, or is
    a picture that is asked about."""
    if path is None:
        return []
    from PIL import Image as formats

    from ptprune.files import check_writable

    writable = [suffix for suffix, kind in formats.registered_extensions().items() if kind in formats.SAVE]
    if path.suffix.lower() not in writable:
        raise UserError(f"{option} {path}: not a picture's name; give one that ends in .png, .jpg or .webp")
    several = (f"{path.stem}-{number + 1}{path.suffix}" for number in range(len(images)))
    paths = [path] if len(images) == 1 else [path.with_name(name) for name in several]
    for each in paths:
        check_writable(each, option, images)
    return paths


def show(document: dict[str, Any]) -> None:
    """The answer, and what pruning saved."""
    from rich.markup import escape

    from ptprune.results.table import duration, size

    console = out()
    visual, cache = document["visual_tokens"], document["kv_bytes"]
    console.print(f"[dim]{escape(', '.join(document['pictures']))}[/dim]")
    console.print(f"[dim]{escape(document['question'])}[/dim]")
    console.print(f"[bold green]{escape(document['answer'] or '(no answer)')}[/bold green]\n")
    regions = len(document["regions"])
    console.print(
        f"[bold]{visual['before']} -> {visual['after']}[/bold] visual tokens in {regions} "
        f"region{'s' if regions > 1 else ''}, KV cache {size(cache['before'])} -> {size(cache['after'])}"
    )
    if (line := encoded_line(document)) is not None:
        console.print(line)
    if "unpruned" in document:
        console.print()
        console.print(_comparison(document))
        console.print()
        _first_token(document["first_token"])
    else:
        phases = (f"{phase} {duration(seconds)}" for phase, seconds in document["seconds"].items())
        console.print(", ".join(phases), style="dim")
    for drawn in ("overlay", "explain"):
        for path in document.get(drawn, ()):
            console.print(f"{drawn}: {escape(path)}", style="dim")


def encoded_line(document: dict[str, Any]) -> str | None:
    """How much of the pictures was encoded, by which settings; None where all of it was."""
    tiles, tokens = document["encoded_tiles"], document["encoded_tokens"]
    if tokens["after"] == tokens["before"]:
        return None
    settings = ", ".join(f"{name}={value}" for name, value in document["encoder_settings"].items())
    line = f"{tiles['after']} of {tiles['before']} tiles encoded ({settings}), "
    line += f"{tokens['after']} of {tokens['before']} tokens"
    if "capped_from" in document:
        line += f"; all of these kept, where {document['capped_from']} were asked for"
    return line


def _comparison(document: dict[str, Any]) -> Table:
    from rich.markup import escape

    from ptprune.results.table import duration, ratio, size, terminal

    arms = document["unpruned"], document
    texts = [" ".join(arm["answer"].split()) for arm in arms]
    same = "same" if arms[0]["answer"] == arms[1]["answer"] else "differs"
    short = [text if len(text) <= 32 else text[:29] + "..." for text in texts]
    rows = [["answer", *map(escape, short), same]]
    amounts: list[tuple[str, str, Callable[[int], str]]] = []
    if encoded_line(document) is not None:
        amounts += [("tiles encoded", "encoded_tiles", str), ("tokens encoded", "encoded_tokens", str)]
    amounts += [("visual tokens", "visual_tokens", str), ("prompt tokens", "sequence_length", str)]
    for name, key, unit in [*amounts, ("KV cache", "kv_bytes", size)]:
        before, after = document[key]["before"], document[key]["after"]
        rows.append([name, unit(before), unit(after), ratio(after, before)])
    before, after = (arm["seconds"]["decode"] / max(arm["new_tokens"] - 1, 1) for arm in arms)
    rows.append(["decode, a token", duration(before), duration(after), ratio(after, before)])
    return terminal(("", "unpruned", "pruned", "ratio"), rows)


def _first_token(times: dict[str, Any]) -> None:
    """Medians of both arms, and the part that each phase has."""
    from ptprune.results.table import count, duration, medians, ratio, terminal

    console, arms = out(), (times["unpruned"], times["pruned"])
    names = {"vision": "vision", "prefill": "language model", "select": "choosing tokens", "rest": "generate() itself"}
    rows = []
    for phase, name in names.items():
        parts = (f"{duration(arm[phase])} {arm[phase] / arm['total']:4.0%}" if arm[phase] else "-" for arm in arms)
        rows.append([name, *parts, ratio(arms[1][phase], arms[0][phase])])
    rows.append(["[bold]first token[/bold]", *(duration(arm["total"]) for arm in arms), f"{times['ratio']:.2f}"])
    console.print(terminal(("", "unpruned", "pruned", "ratio"), rows))
    console.print(
        f"Times: {medians(times['rounds'])}, of a model of {count(times['parameters'])} parameters.", style="dim"
    )
    if (large := times["at_scale"]) is not None:
        console.print(
            f"A model of usual size ({large['model']}, {large['tiles']} tiles{_spared(large)}) would do "
            f"{large['ratio']:.2f} of its work up to the first token.",
            style="dim",
        )


def _spared(large: dict[str, Any]) -> str:
    """What the vision tower of the model of usual size leaves out."""
    spared = ""
    if large["encoded_tiles"] <= large["tiles"]:  # the thumbnail counts among those that are encoded
        spared += f", {large['encoded_tiles'] - 1} of them encoded"
    if large["vision_layer"] is not None:
        spared += f", patches dropped before layer {large['vision_layer']} of its vision tower"
    return spared
