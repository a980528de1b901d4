"""``ptprune bench accuracy``: how many answers stay right with each method and keep ratio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptprune.cli.bars import bars, waiting
from ptprune.cli.console import out, print_json
from ptprune.cli.options import MODEL, OUTPUT, Device, Dtype, Json, Model
from ptprune.cli.parsing import RATIOS, check_settings, parse_methods, parse_ratios, parse_settings
from ptprune.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ptprune.bench.accuracy import Arm
    from ptprune.bench.items import Item

ITEMS = "Items"
WORD, SENTENCE = 2, 32  # longest answers, in tokens: to the scenes' questions, and to any others
FIRST, CELL = 60, 24  # widest columns of the table


def accuracy(
    methods: Annotated[
        str | None, typer.Option(help="Names with commas between; the baselines are always there.", show_default="all")
    ] = None,
    ratios: Annotated[str, typer.Option(help="Shares of visual tokens that stay.")] = RATIOS,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of ptp; may be repeated.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            min=0, help="All methods drop before this layer: equal work behind it.", show_default="each at its own"
        ),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Variants of ptp, on the development split, instead of methods.")
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(help="test or dev: which scenes.", rich_help_panel=ITEMS, show_default="test; dev with --ablate"),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="One a scene.", rich_help_panel=ITEMS, show_default="1000")
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(help="A folder with items.jsonl instead of scenes.", rich_help_panel=ITEMS, metavar="DIR"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items.", rich_help_panel=ITEMS)] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Items a batch.", rich_help_panel=MODEL)] = 16,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer.", rich_help_panel=MODEL, show_default=f"{WORD}, {SENTENCE} with --items"
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--out", help="Keep results here; go on from there.", metavar="FILE.json", rich_help_panel=OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw accuracy against ratio.", metavar="FILE.png", rich_help_panel=OUTPUT)
    ] = None,
    json_output: Json = False,
) -> None:
    """Count right answers with every method and keep ratio, with bootstrap intervals and comparisons to ptp."""
    shares, given, chosen = parse_ratios(ratios), parse_settings(settings or []), choose_split(split, items, ablate)
    if items is not None and questions is not None:
        raise UserError("--questions: not with --items, which has its own; --limit takes the first ones")
    if ablate and methods is not None:
        raise UserError("--methods: not with --ablate, which compares variants of ptp; leave it out")
    if layer is not None and (ablate or "layer" in given):
        raise UserError(f"--layer {layer}: not with {'--ablate' if ablate else '--set layer'}; leave one out")
    longest = max_new_tokens or (WORD if items is None else SENTENCE)

    with bars() as progress:
        with waiting(progress, "loading torch and transformers"):
            from ptprune.bench import accuracy as bench
            from ptprune.bench import plots
            from ptprune.bench.examinee import Examinee
            from ptprune.bench.items import digest
            from ptprune.bench.views import has_tiles
            from ptprune.checkpoints import find as loading
            from ptprune.results import file as store

            loading.quiet_libraries()
            check_settings(given)
            if plot is not None:
                plots.check(plot)
            arms = (
                bench.plan_ablation(shares, given)
                if ablate
                else bench.plan(choose_methods(methods, layer), shares, given, layer)
            )
            target, precision = loading.choose_device(device), loading.choose_dtype(dtype)
            name, directory = model or loading.SHIPPED, loading.find(model)
            processor = loading.load_processor(directory, name)
            arms = [arm for arm in arms if arm.method != bench.THUMBNAIL or has_tiles(processor)]
        asked = load_items(progress, items, chosen, questions or 1000, limit)
        identity = {
            "model": store.fingerprint(directory),
            "items": digest(asked),
            "dtype": precision,
            "max_new_tokens": longest,
        }
        results = Results(
            {"model": name, "items": len(asked), "split": chosen, "identity": identity},
            arms,
            [item.kind for item in asked],
            bench.Arm(bench.PTP, None, given if layer is None else {**given, "layer": layer}).settings,
            {} if save is None else {store.key(row): row for row in store.load(save, identity)},
            save,
        )
        if missing := results.missing:
            with waiting(progress, f"loading {name}"):
                loaded = loading.load_model(directory, name, target, precision)
                examinee = Examinee(loaded, processor, batch, longest)
                examinee.check(asked, [arm.pruner for arm in missing])
            task = progress.add_task("", total=len(missing) * len(asked))
            bench.measure(
                missing,
                asked,
                examinee,
                results.add,
                lambda arm, done: progress.update(
                    task, advance=done, description=f"{arm.name} {'' if arm.keep_ratio is None else arm.keep_ratio}"
                ),
            )
    document = results.document()
    if plot is not None:
        plots.draw(plot, title(document), results.lines())
    if json_output:
        print_json(document)
    else:
        show(document, results.lines(), shares)


@dataclass
class Results:
    """Rows that this run was asked for, and those of earlier runs in the same file.

    Attributes:
        about: the document without its rows.
        kinds: of each item.
        reference: settings of the ptp that others are compared to.
        found: rows by their key; those of earlier runs to begin with.
        path: file that holds them, if any.
    """

    about: dict[str, Any]
    arms: list[Arm]
    kinds: list[str]
    reference: dict[str, Any]
    found: dict[str, dict[str, Any]]
    path: Path | None

    @property
    def missing(self) -> list[Arm]:
        """Arms without a row, each once."""
        return list({arm.key: arm for arm in reversed(self.arms) if arm.key not in self.found}.values())[::-1]

    def add(self, arm: Arm, row: dict[str, Any]) -> None:
        """A finished row: it is on the disk before the next one begins."""
        from ptprune.results import file as store

        self.found[arm.key] = row
        if self.path is not None:
            mine = self.document()
            keys = {arm.key for arm in self.arms}
            others = [row for name, row in self.found.items() if name not in keys]
            store.save(self.path, {**mine, "results": mine["results"] + others})

    def document(self) -> dict[str, Any]:
        """What --json prints: the rows that were asked for, as far as they are finished."""
        from ptprune.bench.accuracy import finish

        rows = [self.found[key] for key in dict.fromkeys(arm.key for arm in self.arms) if key in self.found]
        return {**self.about, "results": finish(rows, self.kinds, self.reference)}

    def lines(self) -> dict[str, list[dict[str, Any]]]:
        """Name of a method or variant -> its rows."""
        from ptprune.results import file as store

        rows = {store.key(row): row for row in self.document()["results"]}
        lines: dict[str, list[dict[str, Any]]] = {}
        for arm in self.arms:
            lines.setdefault(arm.name, []).append(rows[arm.key])
        return lines


def choose_methods(text: str | None, layer: int | None) -> list[str]:
    """Names of methods; where none are given, all that can drop before ``layer``."""
    from ptprune.bench.accuracy import METHODS, WITHOUT_PRUNER, fits

    if text is None:
        return [name for name in METHODS if layer is None or fits(name, layer)]
    names = parse_methods(text, (*METHODS, *WITHOUT_PRUNER))
    for name in names:
        if layer is not None and name in METHODS and not fits(name, layer):
            raise UserError(f"--layer {layer}: {name} cannot drop there; leave it out")
    return names


def choose_split(split: str | None, items: Path | None, ablate: bool) -> str | None:
    """Which scenes; None for a folder of items."""
    if items is not None:
        if split is not None:
            raise UserError("--split: not with --items, which has none; leave it out")
        return None
    if split not in (None, "dev", "test"):
        raise UserError(f"--split {split}: unknown; give test or dev")
    if ablate and split == "test":
        raise UserError("--split test: not with --ablate; settings are compared on the development split only")
    return split or ("dev" if ablate else "test")


def load_items(progress: Progress, folder: Path | None, split: str | None, count: int, limit: int | None) -> list[Item]:
    from ptprune.bench.items import folder_items, scene_items

    count = count if limit is None else min(count, limit)
    with waiting(
        progress, "opening pictures" if split is None else "drawing scenes", count if split else None
    ) as on_item:
        if split is not None:
            return scene_items(split, count, on_item)
        assert folder is not None
        return folder_items(folder, limit, on_item)


def title(document: dict[str, Any]) -> str:
    where = "" if document["split"] is None else f" of the {document['split']} split"
    return f"{document['model']}, {document['items']} questions{where}"


def show(document: dict[str, Any], lines: dict[str, list[dict[str, Any]]], ratios: list[float]) -> None:
    """Accuracy with its interval, and the difference from ptp with its own: methods as rows, ratios as columns."""
    from rich.markup import escape

    from ptprune.cli.presenting import plain_table

    headers = [f"{100 * ratio:g}% kept" for ratio in ratios]
    scores, gains = plain_table("right answers, %", *headers), plain_table("difference from ptp", *headers)
    console = out()
    console.width = max(console.width, FIRST + CELL * len(ratios))  # lines may wrap, numbers are never cut
    console.print(f"[bold]{escape(title(document))}[/bold]\n")
    for name, line in lines.items():
        if line[0]["method"] in ("none", "thumbnail"):
            console.print(f"{name}: {_score(line[0])}, {line[0]['kept_tokens']:g} visual tokens a picture")
            continue
        rows = {row["keep_ratio"]: row for row in line}
        scores.add_row(escape(name), *(_score(rows[ratio]) for ratio in ratios))
        if any(row["vs_ptp"] for row in line):
            gains.add_row(escape(name), *(_gain(rows[ratio]["vs_ptp"]) for ratio in ratios))
    console.print()
    console.print(scores)
    if gains.row_count:
        console.print()
        console.print(gains)
    console.print("\n95% intervals: bootstrap over the questions; differences on the same questions.", style="dim")


def _score(row: dict[str, Any]) -> str:
    return f"{row['accuracy']:.1f} [dim]\\[{row['low']:.1f}, {row['high']:.1f}][/dim]"


def _gain(gain: dict[str, float] | None) -> str:
    if gain is None:
        return "-"
    return f"{gain['difference']:+.1f} [dim]\\[{gain['low']:+.1f}, {gain['high']:+.1f}][/dim]"
