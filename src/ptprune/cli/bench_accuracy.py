"""``ptprune bench accuracy``: how many answers stay right with each method and keep ratio."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptprune.cli import options
from ptprune.cli.console import out, print_json, quiet_libraries, working
from ptprune.errors import UserError

if TYPE_CHECKING:
    from ptprune.results.rows import AccuracyResults, AccuracyRow

items_option = partial(typer.Option, rich_help_panel="Items")
QUESTIONS = 1000
WORD, SENTENCE = 2, 32  # longest answers, in tokens: to the scenes' questions, and to any others
FIRST, CELL = 60, 24  # widest columns of the table


def accuracy(
    methods: Annotated[
        str | None, typer.Option(help="Names with commas between; the baselines are always there.", show_default="all")
    ] = None,
    ratios: Annotated[str, typer.Option(help="Shares of visual tokens that stay.")] = options.RATIOS,
    settings: options.Settings = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="All methods drop before this layer.", show_default="each at its own")
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Variants of ptp, on the development split, instead of methods.")
    ] = False,
    split: Annotated[
        str | None, items_option(help="test or dev: which scenes.", show_default="test; dev with --ablate")
    ] = None,
    questions: Annotated[int | None, items_option(min=1, help="One a scene.", show_default=str(QUESTIONS))] = None,
    items: Annotated[
        Path | None, items_option(help="A folder with items.jsonl instead of scenes.", metavar="DIR")
    ] = None,
    limit: Annotated[int | None, items_option(min=1, help="Only the first items.")] = None,
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch: Annotated[int, options.model(min=1, help="Items a batch.")] = 16,
    max_new_tokens: Annotated[
        int | None, options.model(min=1, help="Longest answer.", show_default=f"{WORD}, {SENTENCE} with --items")
    ] = None,
    save: Annotated[
        Path | None, options.output("--out", help="Keep results here; go on from there.", metavar="FILE.json")
    ] = None,
    plot: Annotated[Path | None, options.output(help="Draw accuracy against ratio.", metavar="FILE.png")] = None,
    json_output: options.Json = False,
) -> None:
    """Count right answers with every method and keep ratio, with bootstrap intervals and comparisons to ptp."""
    shares, given = options.parse_ratios(ratios), options.parse_settings(settings)
    for what, wrong, why in (
        (f"--split {split}", split is not None and items is not None, "not with --items, which has none; leave it out"),
        (f"--split {split}", split not in (None, "dev", "test"), "unknown; give test or dev"),
        ("--split test", ablate and split == "test", "not with --ablate; only the development split compares settings"),
        ("--questions", None not in (items, questions), "not with --items, which has its own; give --limit instead"),
        ("--methods", ablate and methods is not None, "not with --ablate, which compares variants of ptp"),
        (f"--layer {layer}", layer is not None and ablate, "not with --ablate; leave one out"),
        (f"--layer {layer}", layer is not None and "layer" in given, "not with --set layer; leave one out"),
    ):
        if wrong:
            raise UserError(f"{what}: {why}")
    scenes = None if items is not None else split or ("dev" if ablate else "test")
    longest = max_new_tokens or (WORD if items is None else SENTENCE)

    with working("loading torch and transformers") as work:
        from ptprune.bench import candidates, plots
        from ptprune.bench.accuracy import AccuracyRun
        from ptprune.bench.examinee import Examinee, has_tiles
        from ptprune.bench.items import digest
        from ptprune.bench.items.folder import folder_items
        from ptprune.bench.items.scenes import scene_items
        from ptprune.checkpoints import Checkpoint, choose_device, choose_dtype
        from ptprune.results.file import as_json, fingerprint, run_of
        from ptprune.results.rows import AccuracyResults

        quiet_libraries()
        options.check_settings(given)
        if plot is not None:
            plots.check(plot)
        known = (*candidates.METHODS, *candidates.WITHOUT_PRUNER)
        names = None if methods is None else options.parse_methods(methods, known)
        compared = candidates.ablate(shares, given) if ablate else candidates.compare(names, shares, given, layer)
        target, precision = choose_device(device), choose_dtype(dtype)
        checkpoint = Checkpoint.find(model)
        processor = checkpoint.processor()
        compared = [one for one in compared if one.method != candidates.THUMBNAIL_ALONE or has_tiles(processor)]
        if scenes is None:
            assert items is not None
            work.say("opening pictures")
            asked = folder_items(items, limit, work.done)
        else:
            count = min(questions or QUESTIONS, limit or questions or QUESTIONS)
            work.say("drawing scenes", count)
            asked = scene_items(scenes, count, work.done)
        identity = {"model": fingerprint(checkpoint.directory), "items": digest(asked)}
        now = run_of(identity | {"dtype": precision, "max_new_tokens": longest}, str(target))
        about = AccuracyResults(model=checkpoint.name, items=len(asked), split=scenes, runs=[now])
        reference = candidates.Candidate(candidates.PTP, None, given if layer is None else {**given, "layer": layer})
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
    where = "" if results.split is None else f" of the {results.split} split"
    return f"{results.model}, {results.items} questions{where}"


def show(results: AccuracyResults, lines: dict[str, list[AccuracyRow]], ratios: list[float]) -> None:
    """Accuracy with its interval, and the difference from ptp with its own: methods as rows, ratios as columns."""
    from rich.markup import escape

    from ptprune.bench.report.accuracy import gain_in_words, score, work
    from ptprune.results.table import percent, terminal

    console = out(FIRST + CELL * len(ratios))
    console.print(f"[bold]{escape(title(results))}[/bold]\n")
    scores, gains, works = [], [], []
    for name, line in lines.items():
        if line[0].method in ("none", "thumbnail"):
            console.print(f"{name}: {escape(score(line[0]))}, {line[0].kept_tokens:g} visual tokens a picture")
            continue
        rows = {row.keep_ratio: row for row in line}
        scores.append([escape(name), *(escape(score(rows[ratio])) for ratio in ratios)])
        if any(shares := [work(rows[ratio]) for ratio in ratios]):
            works.append([escape(name), *(share or "-" for share in shares)])
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
    console.print("\n95% intervals: bootstrap over the questions; differences on the same questions.", style="dim")
