"""Results for people: short, aligned, in units that one can read."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_run(console: Console, document: dict[str, Any]) -> None:
    """The answer, and what pruning saved."""
    visual, length, cache = (document[key] for key in ("visual_tokens", "sequence_length", "kv_bytes"))
    console.print(f"[dim]{escape(', '.join(document['pictures']))}[/dim]")
    console.print(f"[dim]{escape(document['question'])}[/dim]")
    console.print(f"[bold green]{escape(document['answer'] or '(no answer)')}[/bold green]\n")
    regions = len(document["regions"])
    console.print(
        f"[bold]{visual['before']} -> {visual['after']}[/bold] visual tokens in {regions} "
        f"region{'s' if regions > 1 else ''}, KV cache {size(cache['before'])} -> {size(cache['after'])}"
    )
    if "unpruned" in document:
        console.print()
        console.print(_comparison(document, length))
    else:
        seconds = document["seconds"]
        console.print(", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items()), style="dim")
    for path in document.get("overlay", ()):
        console.print(f"overlay: {escape(path)}", style="dim")


def _comparison(document: dict[str, Any], length: dict[str, int]) -> Table:
    unpruned, pruned = document["unpruned"], document
    table = plain_table("", "unpruned", "pruned", "ratio")
    visual, cache = document["visual_tokens"], document["kv_bytes"]
    same = "same" if unpruned["answer"] == pruned["answer"] else "differs"
    table.add_row("answer", escape(_short(unpruned["answer"])), escape(_short(pruned["answer"])), same)
    for name, pair, unit in (("visual tokens", visual, str), ("prompt tokens", length, str), ("KV cache", cache, size)):
        table.add_row(name, unit(pair["before"]), unit(pair["after"]), ratio(pair["after"], pair["before"]))
    for phase in ("vision", "select", "prefill"):
        table.add_row(phase, *_times(unpruned["seconds"][phase], pruned["seconds"][phase]))
    first = [sum(arm["seconds"][phase] for phase in ("vision", "select", "prefill")) for arm in (unpruned, pruned)]
    table.add_row("first token", *_times(*first))
    each = [arm["seconds"]["decode"] / max(arm["new_tokens"] - 1, 1) for arm in (unpruned, pruned)]
    table.add_row("decode, a token", *_times(*each))
    table.add_row("total", *_times(unpruned["seconds"]["total"], pruned["seconds"]["total"]))
    return table


def plain_table(*headers: str) -> Table:
    """A table without lines: first column names, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    return table


def _times(before: float, after: float) -> tuple[str, str, str]:
    return duration(before), duration(after), ratio(after, before)


def _short(text: str, length: int = 32) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def ratio(after: float, before: float) -> str:
    """How much is left."""
    return f"{after / before:.2f}" if before else ""


def duration(seconds: float) -> str:
    """Three digits in the unit that fits; "-" for nothing at all."""
    if not seconds:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def size(number: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"


def count(number: float) -> str:
    """Operations in the unit that fits."""
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"
