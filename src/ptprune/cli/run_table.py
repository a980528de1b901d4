"""What ``ptprune run`` shows: the answer, and what pruning saved."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptprune.results.table import duration, ratio, size, terminal


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
    table = terminal(("", "unpruned", "pruned", "ratio"), [])
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


def _times(before: float, after: float) -> tuple[str, str, str]:
    return duration(before), duration(after), ratio(after, before)


def _short(text: str, length: int = 32) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
