"""``ptprune bench accuracy``: how many answers stay right with each method and keep ratio."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.bounds import MAX_BATCH, MAX_ITEMS, MAX_LAYERS, MAX_TOKENS
from ptprune.cli import options
from ptprune.cli.console import out, print_json, quiet_libraries, working
from ptprune.cli.plugin import load
from ptprune.errors import UserError

if TYPE_CHECKING:
    from ptprune.results.rows import AccuracyResults, AccuracyRow

items_option = partial(typer.Option, rich_help_panel="Items")
QUESTIONS = 1000
SENTENCE = 32  # longest answer, in tokens, to questions of a folder
FIRST, CELL = 60, 24  # widest columns of the table


def accuracy(
    methods: Annotated[
        str | None, typer.Option(help="Names with commas between; the baselines are always there.", show_default="all")
    ] = None,
    ratios: Annotated[str, typer.Option(help="Shares of visual tokens that stay.")] = options.RATIOS,
    settings: options.Settings = None,
    plugin: options.Plugin = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_LAYERS, help="All methods drop before this layer.", show_default="each at its own"),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Variants of ptp, on the development split, instead of methods.")
    ] = False,
    encodings: Annotated[
        bool, typer.Option("--encodings", help="Variants of ptp that encode less of a picture, instead of methods.")
    ] = False,
    scenes: Annotated[
        str | None, items_option(help="The world: usual, sparse, crowded, ... (ptprune items).", show_default="usual")
    ] = None,
    background: Annotated[
        str | None, items_option(help="Of scenes: mixture, plain, photograph or noise.", show_default="mixture")
    ] = None,
    split: Annotated[
        str | None, items_option(help="test or dev: which scenes.", show_default="test; dev with --ablate")
    ] = None,
    questions: Annotated[
        int | None, items_option(min=1, max=MAX_ITEMS, help="One a scene.", show_default=str(QUESTIONS))
    ] = None,
    items: Annotated[
        Path | None, items_option(help="A folder with items.jsonl instead of scenes.", metavar="DIR")
    ] = None,
    outside: Annotated[
        bool, items_option("--items-outside", help="The list may name pictures outside its folder.")
    ] = False,
    limit: Annotated[int | None, items_option(min=1, max=MAX_ITEMS, help="Only the first items.")] = None,
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch: Annotated[int, options.model(min=1, max=MAX_BATCH, help="Items a batch.")] = 16,
    max_new_tokens: Annotated[
        int | None,
        options.model(
            min=1, max=MAX_TOKENS, help="Longest answer.", show_default=f"the world's; {SENTENCE} with --items"
        ),
    ] = None,
    save: Annotated[
        Path | None, options.output("--out", help="Keep results here; go on from there.", metavar="FILE.json")
    ] = None,
    plot: Annotated[Path | None, options.output(help="Draw accuracy against ratio.", metavar="FILE.png")] = None,
    json_output: options.Json = False,
) -> None:
    """Count right answers with every method and keep ratio, with bootstrap intervals and comparisons to ptp."""
    shares, given = options.parse_ratios(ratios), options.parse_settings(settings)
    own_layer = any("layer" in of for of in given.values())
    for what, wrong, why in (
        (f"--split {split}", split is not None and items is not None, "not with --items, which has none; leave it out"),
        (f"--split {split}", split not in (None, "dev", "test"), "unknown; give test or dev"),
        ("--split test", ablate and split == "test", "not with --ablate; only the development split compares settings"),
        ("--items-outside", outside and items is None, "only with --items"),
        ("--out and --plot", None not in (save, plot) and save == plot, "the same file; give two"),
        ("--scenes", None not in (items, scenes), "not with --items; leave one out"),
        ("--background", None not in (items, background), "not with --items, which has its own; leave it out"),
        ("--questions", None not in (items, questions), "not with --items, which has its own; give --limit instead"),
        ("--encodings", encodings and ablate, "not with --ablate; leave one out"),
        ("--methods", ablate and methods is not None, "not with --ablate, which compares variants of ptp"),
        ("--methods", encodings and methods is not None, "not with --encodings, which compares variants of ptp"),
        (f"--layer {layer}", layer is not None and ablate, "not with --ablate; leave one out"),
        (f"--layer {layer}", layer is not None and encodings, "not with --encodings; give --set layer"),
        (f"--layer {layer}", layer is not None and own_layer, "not with --set layer; leave one out"),
    ):
        if wrong:
            raise UserError(f"{what}: {why}")
    part = None if items is not None else split or ("dev" if ablate else "test")

    with working("loading torch and transformers") as work:
        from ptprune.bench import candidates, plots
        from ptprune.bench.accuracy import AccuracyRun
        from ptprune.bench.examinee import Examinee, has_tiles
        from ptprune.bench.items import digest
        from ptprune.bench.items.folder import LIST, folder_items
        from ptprune.bench.items.scenes import USUAL, scene_items, world_named
        from ptprune.bench.subject import tower_layers
        from ptprune.checkpoints import Checkpoint, choose_device, choose_dtype
        from ptprune.files import check_writable
        from ptprune.results.file import as_json, fingerprint, run_of
        from ptprune.results.rows import AccuracyResults

        quiet_libraries()
        identity = load(plugin)
        read = options.read_settings(given)
        if plot is not None:
            plots.check(plot)
        known = (*candidates.METHODS, *candidates.WITHOUT_PRUNER)
        names = None if methods is None else options.parse_methods(methods, known)
        ptp = read.get(candidates.PTP, {})
        world = world_named(scenes or USUAL, background)
        longest = max_new_tokens or (world.longest if items is None else SENTENCE)
        target, precision = choose_device(device), choose_dtype(dtype)
        checkpoint = Checkpoint.find(model)
        processor = checkpoint.processor()
        tiled = has_tiles(processor)
        if encodings:
            compared = candidates.encode(shares, ptp, tower_layers(checkpoint.config()), tiled)
        else:
            compared = candidates.ablate(shares, ptp) if ablate else candidates.compare(names, shares, read, layer)
        compared = [one for one in compared if one.method != candidates.THUMBNAIL_ALONE or tiled]
        if part is None:
            assert items is not None
            work.say("opening pictures")
            asked = folder_items(items, limit, work.done, outside=outside)
            opened = [items / LIST, *(item.picture for item in asked if isinstance(item.picture, Path))]
            for option, path in (("--out", save), ("--plot", plot)):
                if path is not None:
                    check_writable(path, option, opened)
        else:
            count = min(questions or QUESTIONS, limit or questions or QUESTIONS)
            work.say("drawing scenes", count)
            asked = scene_items(part, count, work.done, world.name, background)
        identity |= {"model": fingerprint(checkpoint.directory), "items": digest(asked)}
        now = run_of(identity | {"dtype": precision, "max_new_tokens": longest}, str(target))
        named = f"{world.name}, background {background}" if background else world.name
        told = None if part is None or named == USUAL else named
        about = AccuracyResults(model=checkpoint.name, items=len(asked), split=part, scenes=told, runs=[now])
        reference = candidates.Candidate(candidates.PTP, None, ptp if layer is None else {**ptp, "layer": layer})
        run = AccuracyRun(about, compared, asked, reference.settings, save)
        if missing := run.missing:
            work.say(f"loading {checkpoint.name}")
            loaded = checkpoint.model(target, precision)
            examinee = Examinee(loaded, processor, batch, max_new_tokens=longest)
            examinee.check(asked, [one.pruner for one in missing])
            work.say("", len(missing) * len(asked))
            run.measure(examinee, work.advance)
    results = run.document()
    if plot is not None:
        plots.draw(plot, title(results), run.lines())
    if json_output:
        print_json(as_json(results))
    else:
        show(results, run.lines(), shares)


def title(results: AccuracyResults) -> str:
    world = "" if results.scenes is None else f" about {results.scenes}"
    where = "" if results.split is None else f" of the {results.split} split"
    return f"{results.model}, {results.items} questions{world}{where}"


def show(results: AccuracyResults, lines: dict[str, list[AccuracyRow]], ratios: list[float]) -> None:
    """Accuracy with its interval, and the difference from ptp with its own: methods as rows, ratios as columns."""
    from rich.markup import escape

    from ptprune.bench.report.accuracy import encoded, gain_in_words, score, work
    from ptprune.results.table import percent, terminal

    console = out(FIRST + CELL * len(ratios))
    console.print(f"[bold]{escape(title(results))}[/bold]\n")
    scores, gains, works, towers = [], [], [], []
    for name, line in lines.items():
        if line[0].method in ("none", "thumbnail"):
            console.print(f"{name}: {escape(score(line[0]))}, {line[0].kept_tokens:g} visual tokens a picture")
            continue
        rows = {row.keep_ratio: row for row in line}
        scores.append([escape(name), *(escape(score(rows[ratio])) for ratio in ratios)])
        if any(shares := [work(rows[ratio]) for ratio in ratios]):
            works.append([escape(name), *(share or "-" for share in shares)])
        if any(rows[ratio].encoded_tokens for ratio in ratios):
            towers.append([escape(name), *(encoded(rows[ratio]) or "-" for ratio in ratios)])
        if any(found := [rows[ratio].vs_ptp for ratio in ratios]):
            gains.append([escape(name), *("-" if gain is None else escape(gain_in_words(gain)) for gain in found)])
    headers = [f"{percent(ratio)} kept" for ratio in ratios]
    console.print()
    console.print(terminal(["right answers, %", *headers], scores))
    if gains:
        console.print()
        console.print(terminal(["difference from ptp", *headers], gains))
    if works:
        console.print()
        console.print(terminal(["work to the first token, of unpruned", *headers], works))
    if towers:
        console.print()
        console.print(terminal(["encoded: tiles, tokens", *headers], towers))
    console.print("\n95% intervals: bootstrap over the questions; differences on the same questions.", style="dim")
