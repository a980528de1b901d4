"""The whole page: what was measured here and on what, what was not, and apart from it what papers report."""

from __future__ import annotations

from pathlib import Path

from ptprune.bench import plots
from ptprune.bench.report import ablation, accuracy, published, speed
from ptprune.bench.report.comparison import BETTER, WORSE
from ptprune.bench.report.documents import Documents
from ptprune.bench.report.figures import Pictures
from ptprune.bench.report.rows import Rows
from ptprune.checkpoints.find import SHIPPED
from ptprune.errors import UserError
from ptprune.methods import METHODS
from ptprune.results import file as store

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


def write(documents: Documents, path: Path) -> list[Path]:
    """Write a page, and its plots into a folder of its name beside it.

    Args:
        path: of the page; ends in .md.

    Returns:
        The files written, the page first.

    Raises:
        UserError: where something cannot be drawn or written.
    """
    folder = path.with_suffix("")
    pictures = Pictures(folder.name)
    text = compose(documents, pictures)
    if pictures.drawn:
        plots.require("ptprune bench report")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot hold the plots ({error.strerror}); give another --out") from None
    for name, draw in pictures.drawn.items():
        draw(folder / name)
    store.write(path, text)
    return [path, *(folder / name for name in pictures.drawn)]


def compose(documents: Documents, pictures: Pictures) -> str:
    """The page's text. Nothing but the documents decides what is in it."""
    rows = [Rows(document) for document in documents.accuracy]
    pairs = list(zip(documents.accuracy, rows, strict=True))
    parts = {
        "Accuracy": [accuracy.section(document, pictures) for document, of in pairs if of.compares_methods],
        "Ablation": [ablation.section(document) for document, of in pairs if of.is_ablation],
        "Speed": [speed.section(document, pictures) for document in documents.speed],
    }
    legend = {"Accuracy": ACCURACY, "Ablation": ABLATION, "Speed": SPEED}
    blocks = [HEAD]
    for heading, sections in parts.items():
        blocks += [f"## {heading}", legend[heading] if sections else "Not measured."]
        blocks += [block for section in sections for block in section]
    missing = not_measured(documents, rows)
    blocks += ["## Not measured", "\n".join(f"- {what}: not measured" for what in missing) or "Nothing is missing."]
    blocks += ["## What the papers report", PAPERS if documents.published else "No file of such numbers was given."]
    blocks += [block for document in documents.published for block in published.section(document)]
    return "\n\n".join(blocks) + "\n"


def not_measured(documents: Documents, rows: list[Rows]) -> list[str]:
    """What one would look for in vain."""
    missing = []
    if all(document["model"] == SHIPPED for document in documents.accuracy):
        missing.append(f"accuracy of models other than {SHIPPED}")
    if all(document["split"] != "test" for document in documents.accuracy):
        missing.append("accuracy on the test split")
    lines = [of.with_defaults() for of in rows if of.compares_methods]
    methods = [name for name in METHODS if not any(name in line for line in lines)]
    if methods:
        missing.append(f"accuracy of {', '.join(methods)} with default settings")
    devices = [document["device"].partition(":")[0] for document in documents.speed]
    missing += [f"speed on a {kind}" for kind, device in (("CPU", "cpu"), ("GPU", "cuda")) if device not in devices]
    if all(map(speed.shallow, documents.speed)):
        missing.append("speed of a model with all of its layers")
    if all(document["layers"] is not None for document in documents.speed):
        missing.append("speed of a checkpoint")
    return missing
