"""The parts of the page that show something, as HTML. Pictures lie in it as data, so that none is written to a disk."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import BytesIO

from PIL.Image import Image

from ptprune.app.visit import Answered
from ptprune.asking.answer import Answer
from ptprune.draw import draw_overlay
from ptprune.explain import TITLES, draw_heat_map, levels
from ptprune.report import ImageReport, PruningReport, RegionReport
from ptprune.results.table import duration, size

PHASES = {
    "vision": "vision encoder",
    "select": "choosing tokens",
    "prefill": "language model, prompt",
    "decode": "language model, answer",
    "rest": "generate() itself",
}


def note(text: str = "", trouble: bool = False) -> str:
    """One line about what is going on, or what went wrong."""
    if trouble:
        return f'<p class="ptp-note ptp-trouble" role="alert">{escape(text)}</p>'
    return f'<p class="ptp-note" role="status">{escape(text)}</p>'


def answers(unpruned: str | None, pruned: str | None, answered: Answered | None = None) -> str:
    """Both answers side by side; None: not asked (yet)."""
    cards = []
    for name, title, text in (("unpruned", "Without pruning", unpruned), ("pruned", "With pruning", pruned)):
        answer = None if answered is None else getattr(answered, name)
        told = "" if text is None else escape(text) or "<i>(no answer)</i>"
        below = _told(answered, answer) if answered is not None and answer is not None else ""
        cards.append(
            f'<section class="ptp-card ptp-{name}"><h3>{title}</h3><p class="ptp-answer">{told}</p>'
            f'<p class="ptp-small">{below}</p></section>'
        )
    return f'<div class="ptp-pair">{"".join(cards)}</div>'


def _told(answered: Answered, answer: Answer) -> str:
    before, after = answered.report.visual_tokens
    number = after if answer is answered.pruned else before
    return f"{number} visual tokens, {duration(answer.seconds['total'])}"


def bars(report: PruningReport, answered: Answered) -> str:
    """Visual tokens of what is shown; KV cache and time of the last answer."""
    before, after = report.visual_tokens
    groups = [_bars("Visual tokens", {"without": [("tokens", before)], "with": [("tokens", after)]}, "{:g}".format)]
    arms = {"without": answered.unpruned, "with": answered.pruned}
    full = answered.pruned.full_kv_bytes
    cache = {name: [("cache", full if arm is None else arm.kv_bytes)] for name, arm in arms.items()}
    groups.append(_bars("KV cache of the prompt", cache, size))
    times = {name: [(phase, arm.seconds[phase]) for phase in PHASES] for name, arm in arms.items() if arm is not None}
    groups.append(_bars("Time", times, duration))
    legend = "".join(f'<li><i class="ptp-bar-{phase}"></i>{name}</li>' for phase, name in PHASES.items())
    about = (
        f"Cache and times are those of the last answer (keep ratio {answered.form.keep_ratio:g}), one run each, one "
        "after the other."
    )
    return f'<div class="ptp-bars">{"".join(groups)}<ul class="ptp-legend">{legend}</ul></div>{small(about)}'


def _bars(title: str, rows: Mapping[str, Sequence[tuple[str, float]]], unit: Callable[[float], str]) -> str:
    """A bar for each arm, as long as its share of the longest, made of parts."""
    sums = {name: sum(value for _, value in parts) for name, parts in rows.items()}
    longest = max(sums.values()) or 1
    lines = []
    for name, parts in rows.items():
        pieces = "".join(
            f'<i class="ptp-bar-{part}" style="width:{100 * value / longest:.2f}%" '
            f'title="{PHASES.get(part, title)}: {unit(value)}"></i>'
            for part, value in parts
        )
        lines.append(
            f'<tr><th>{name}</th><td class="ptp-track"><div>{pieces}</div></td><td>{unit(sums[name])}</td></tr>'
        )
    return f"<table><caption>{title}</caption>{''.join(lines)}</table>"


def kept(picture: Image, report: ImageReport) -> str:
    """The picture with its kept tokens clear, and each tile's budget."""
    return _figure(draw_overlay(picture, report), "", "The picture, its kept tokens clear") + budgets(report)


def budgets(report: ImageReport) -> str:
    """The tiles' budgets as a table that is laid out as the tiles are."""
    tiles = {(region.row, region.column): region for region in report.regions if not region.is_thumbnail}
    lines = []
    if tiles:
        for row in range(max(row for row, _ in tiles) + 1):
            places = [(row, column) for column in range(max(column for _, column in tiles) + 1)]
            lines.append("".join(_budget(tiles[place]) if place in tiles else "<td></td>" for place in places))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    beside = "".join(f"<tr>{_budget(region)}</tr>" for region in report.regions if region.is_thumbnail)
    if beside:
        beside = f'<table class="ptp-budgets"><caption>Thumbnail</caption>{beside}</table>'
    return (
        f'<div class="ptp-tables"><table class="ptp-budgets"><caption>Tokens kept in each tile</caption>{table}</table>'
        f"{beside}</div>"
    )


def _budget(region: RegionReport) -> str:
    number = len(region.indices)
    share = region.budget / number if number else 0.0
    about = "thumbnail" if region.is_thumbnail else f"row {region.row + 1}, column {region.column + 1}"
    about += f": {region.budget} of {number} tokens kept"
    if region.saliency is not None and not region.is_thumbnail:
        about += f", saliency {region.saliency:.3g}"
    return f'<td title="{about}" style="--share:{share:.3f}">{region.budget}/{number}</td>'


def heat_maps(picture: Image, report: ImageReport, captions: Mapping[str, str]) -> str:
    """Every level that the method computed, as a heat map with its caption."""
    found = [
        _figure(draw_heat_map(picture, report, level), captions.get(level, ""), TITLES[level])
        for level in levels(report)
    ]
    if not found:
        return small("This method ranks tokens by no score, so there is nothing to draw.")
    return f'<div class="ptp-maps">{"".join(found)}</div>'


def _figure(image: Image, caption: str, alternative: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alternative)}" src="{picture_data(image, "JPEG")}">{below}</figure>'


def picture_data(image: Image, kind: str) -> str:
    """A picture as a ``data:`` address, as "PNG" or, smaller and faster, as "JPEG"."""
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": 90, "subsampling": 0} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{b64encode(buffer.getvalue()).decode()}"


def small(text: str) -> str:
    return f'<p class="ptp-small">{escape(text)}</p>'
