"""The whole page: results measured here, a list of those missing, and apart from them the numbers of papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ptprune.bench import plots
from ptprune.bench.candidates import FEWER_TILES, NO_PRUNING, THUMBNAIL_ALONE, WITHOUT_PRUNER
from ptprune.bench.report import speed
from ptprune.bench.report.accuracy import BETTER, WORSE, methods_section, variants_section
from ptprune.bench.report.lines import Lines
from ptprune.bench.report.parts import Figures
from ptprune.checkpoints import SHIPPED
from ptprune.errors import UserError
from ptprune.files import check_writable, make_folder
from ptprune.methods import METHODS
from ptprune.results.file import read
from ptprune.results.file import write as write_file
from ptprune.results.rows import AccuracyResults, PublishedResults, Results, SpeedResults
from ptprune.results.table import escape, markdown

HEAD = """# Results

Written by `ptprune bench report` from the files of the benchmarks, not by hand. How they measure: `docs/benchmarks.md`
and `docs/benchmarks-speed.md`. What papers report is the last part, and was collected by hand."""
ACCURACY = f"""Right answers in %, with 95% bootstrap intervals over the questions. {BETTER} or {WORSE}: the interval of
the paired difference from ptp in the same table, at the same share of visual tokens, lies wholly above or below 0.
`layer`: tokens are dropped before this layer of the language model. An equal share is equal work only where the layer
is equal too."""
ABLATION = f"""Differences from ptp on the same questions, in points, with 95% bootstrap intervals; {BETTER} or {WORSE}
where an interval lies wholly above or below 0."""
SPEED = """Ratios are taken round by round; quote them, not times, which are those of one machine at one time. `ideal`
is the unpruned model on a prompt that is as short, without a picture. Operations are counted, not measured. Targets are
judged by medians."""
PAPERS = """Copied from the sources named, not measured here. Other models, questions and machines: no number below
compares with one above."""


def write(files: Sequence[Path], path: Path) -> list[Path]:
    """Write a page, and its plots into a folder of its name beside it.

    Args:
        files: files of results, in the order of the page.
        path: of the page; ends in .md.

    Returns:
        The files written, the page first.

    Raises:
        UserError: for a file that cannot be read, has no place on the page, or is given twice; where something cannot
            be drawn or written.
    """
    check_writable(path, "--out", files)
    known: dict[str, Path] = {}
    contents = []
    for file in files:
        results = read(file)
        if not isinstance(results, AccuracyResults | SpeedResults | PublishedResults):
            raise UserError(f"{file}: results of {results.WRITTEN_BY} have no place on this page")
        if isinstance(results, AccuracyResults):
            _check_methods(file, results)
        content = results.model_dump_json()
        if content in known:
            raise UserError(f"{file}: the same as {known[content]}; give each file once")
        known[content] = file
        contents.append(results)
    folder = path.with_suffix("")
    figures = Figures(folder.name)
    text = compose(contents, figures)
    if figures.drawn:
        plots.require("ptprune bench report")
        make_folder(folder, f"--out {path}: the folder of its plots, {folder}")
    for name in figures.drawn:
        check_writable(folder / name, "--out", files)
    for name, draw in figures.drawn.items():
        draw(folder / name)
    write_file(path, text)
    return [path, *(folder / name for name in figures.drawn)]


def _check_methods(file: Path, results: AccuracyResults) -> None:
    """Rows must be of methods that this version knows, with what their tables need."""
    for number, row in enumerate(results.results):
        if row.method not in (*METHODS, *WITHOUT_PRUNER, FEWER_TILES):
            known = f"this version knows no method {row.method!r}; --plugin takes the file that defines it"
            raise UserError(f"{file}: results.{number}.method: {known}")
        if row.method in METHODS and not isinstance(row.settings.get("layer"), int):
            raise UserError(f"{file}: results.{number}.settings.layer must be a whole number")
        if row.method not in (NO_PRUNING, THUMBNAIL_ALONE) and row.keep_ratio is None:
            raise UserError(f"{file}: results.{number}.keep_ratio must be a number")


def compose(files: Sequence[Results], figures: Figures) -> str:
    """The page's text, which depends on the files alone."""
    measured = [results for results in files if isinstance(results, AccuracyResults)]
    timed = [results for results in files if isinstance(results, SpeedResults)]
    papers = [results for results in files if isinstance(results, PublishedResults)]
    pairs = [(results, Lines(results)) for results in measured]
    parts = {
        "Accuracy": [methods_section(results, figures) for results, of in pairs if of.compares_methods],
        "Ablation": [variants_section(results) for results, of in pairs if of.is_ablation],
        "Speed": [speed.section(results, figures) for results in timed],
    }
    blocks = [HEAD]
    for (heading, sections), legend in zip(parts.items(), (ACCURACY, ABLATION, SPEED), strict=True):
        blocks += [f"## {heading}", legend if sections else "Not measured."]
        blocks += [block for section in sections for block in section]
    missing = not_measured(measured, timed)
    blocks += ["## Not measured", "\n".join(f"- {what}: not measured" for what in missing) or "Nothing is missing."]
    blocks += ["## What the papers report", PAPERS if papers else "No file of such numbers was given."]
    blocks += [block for results in papers for block in _papers(results)]
    return "\n\n".join(blocks) + "\n"


def _papers(results: PublishedResults) -> list[str]:
    """The blocks about numbers of papers, which stand in tables of their own."""
    blocks = []
    for table in results.tables:
        rows = [[escape(row.method), *map(_value, row.values), escape(row.source)] for row in table.rows]
        blocks += [
            f"### {escape(table.title)}",
            f"Model: {escape(table.model)}. Unit: {escape(table.unit)}.",
            markdown(["method", *map(escape, table.columns), "source"], rows),
        ]
    return blocks


def _value(value: float | str | None) -> str:
    return "-" if value is None else escape(value) if isinstance(value, str) else f"{value:g}"


def not_measured(measured: Sequence[AccuracyResults], timed: Sequence[SpeedResults]) -> list[str]:
    """Measurements that a reader would look for in vain."""
    missing = []
    if all(results.model.startswith(SHIPPED) for results in measured):
        missing.append(f"accuracy of models other than {SHIPPED}")
    if all(results.split != "test" for results in measured):
        missing.append("accuracy on the test split")
    compared = [of.with_defaults() for of in map(Lines, measured) if of.compares_methods]
    methods = [name for name in METHODS if not any(name in lines for lines in compared)]
    if methods:
        missing.append(f"accuracy of {', '.join(methods)} with default settings")
    devices = [results.device.partition(":")[0] for results in timed]
    missing += [f"speed on a {kind}" for kind, device in (("CPU", "cpu"), ("GPU", "cuda")) if device not in devices]
    if all(map(speed.shallow, timed)):
        missing.append("speed of a model with all of its layers")
    if all(results.layers is not None for results in timed):
        missing.append("speed of a checkpoint")
    return missing
