"""What pruning adds to a prefill and to a decoding step: operations and reads by the host, counted, not timed.

Counts are the same on every machine, so that a test can pin them. On a GPU each operation is a kernel to launch and
each read waits for all of the work that is queued: these, not the arithmetic, are what choosing tokens costs there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ptprune.bench import synchronisations
from ptprune.bench.subject import Setup, Subject, prepare
from ptprune.conventions import cache_of, keep_cache
from ptprune.pruner import TokenPruner
from ptprune.results.file import run_of
from ptprune.results.rows import OverheadResults, OverheadRow

PHASES = {
    "choose tiles": ("attach/tower", "attach/rows", "attach/tile_cache", "scores/tiles", "encoding"),
    "drop patches": ("attach/patches",),
    "watch the encoder": ("attach/vision", "attach/tap", "scores/attention", "families/"),
    "find the images": ("attach/prompt", "attach/forward", "families/prompt_image", "families/grouping", "layout"),
    "score": ("scores/", "attach/instruction", "attach/stage:_paid", "attach/stage:evidence"),
    "select": ("methods/", "pruner", "steps", "selection", "budget", "scores/registry"),
    "cut": ("attach/cut", "attach/stage", "attach/layers"),
    "caches": ("attach/cache", "attach/static", "attach/windows", "attach/ending"),
    "restore": ("attach/cut:restore",),
}
"""Phase -> whose operations it has: files of the package, or functions in them. The longest fit counts."""
PARTIAL = "layers run for their keys"
"""The phase of what the model's own modules do on top: the score before layer 0 runs parts of a layer."""

READING_OPERATIONS = frozenset(
    {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "bincount",
        "equal",
        "_unique2",
        "unique_dim",
        "is_nonzero",
        "item",
    }
)
READING_METHODS = frozenset({"tolist", "cpu"})  # numpy() works on the host alone: its values were read before
NARROW = 64  # width of models that are only counted on


@dataclass
class Counts:
    """Operations and reads by phase; ``None`` collects those of the model's own code."""

    operations: Counter[str | None] = field(default_factory=Counter)
    reads: Counter[str | None] = field(default_factory=Counter)


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        phase, name = _phase(), func.overloadpacket.__name__
        self.counts.operations[phase] += 1
        unsized = name == "repeat_interleave" and isinstance(args[-1], Tensor) and not (kwargs or {}).get("output_size")
        if name in READING_OPERATIONS or unsized or _by_mask(name, args):
            self.counts.reads[phase] += 1
        return func(*args, **(kwargs or {}))


def _by_mask(name: str, args: Sequence[Any]) -> bool:
    """Whether an operation indexes by a boolean mask, which is turned into indices: how many there are is read."""
    if name not in ("index", "index_put", "index_put_") or (name != "index" and args[2].numel() == 1):
        return False  # one value is filled in where the mask says so
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1])


class _Methods(TorchFunctionMode):
    """Reads that no operation stands for where tensors are on the host already."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READING_METHODS:
            self.counts.reads[_phase()] += 1
        return func(*args, **(kwargs or {}))


def _phase() -> str | None:
    """The phase of the code that is running; None for the model's own, also where the package called it."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if "/transformers/" in file:
            return None
        if "/ptprune/" in file and not file.endswith("/upload.py") and "/bench/" not in file:
            where = f"{file.rpartition('/ptprune/')[2].removesuffix('.py')}:{frame.f_code.co_name}"
            fits = [(len(part), phase) for phase, parts in PHASES.items() for part in parts if where.startswith(part)]
            return max(fits, default=(0, where))[1]
        frame = frame.f_back  # type: ignore[assignment]
    return None


@torch.no_grad()
def count(run: Callable[[], Any]) -> tuple[Counts, Any]:
    """What a function does, and what it returns."""
    counts = Counts()
    with _Operations(counts), _Methods(counts):
        returned = run()
    return counts, returned


def added(subject: Subject, pruner: TokenPruner | None) -> tuple[Counts, Counts]:
    """Counts of a prefill and of the decoding step after it."""
    model = subject.model
    with _around(subject, pruner):
        prefill, output = count(lambda: model(**subject.inputs, **keep_cache(model), logits_to_keep=1))
        token = output.logits[:, -1:].argmax(-1)
        step = {"input_ids": token, **keep_cache(model, cache_of(output))}
        decode, _ = count(lambda: model(**step, logits_to_keep=1))
    return prefill, decode


def _around(subject: Subject, pruner: TokenPruner | None) -> AbstractContextManager[Any]:
    return nullcontext() if pruner is None else pruner(subject.model)


@torch.no_grad()
def _timed(subject: Subject, pruner: TokenPruner) -> dict[str, float]:
    """What the pruner adds on a CUDA device; nothing on any other."""
    if subject.model.device.type != "cuda":
        return {}

    def prefill() -> None:
        subject.model(**subject.inputs, **keep_cache(subject.model), logits_to_keep=1)

    def pruned() -> None:
        with pruner(subject.model):
            prefill()

    more, microseconds = synchronisations.added(prefill, pruned)
    return {"synchronisations": more, "microseconds": microseconds}


def measure(
    setup: Setup, pruners: Mapping[str, TokenPruner], say: Callable[[str], None] = lambda text: None
) -> OverheadResults:
    """The results of ``ptprune bench overhead``. Widths do not change counts, so that a shape is made narrow."""
    say("building the model")
    if setup.shape is not None:
        text, vision = setup.shape.text, setup.shape.vision
        text = replace(text, width=NARROW, ffn=NARROW, heads=4, kv_heads=2, head_dim=16, vocabulary=1000)
        vision = replace(vision, width=NARROW, ffn=NARROW, heads=2)
        setup = replace(setup, shape=replace(setup.shape, text=text, vision=vision))
    subject = prepare(setup)
    say("counting: unpruned")
    added(subject, None)  # what a first call sets up counts for nobody
    stock = added(subject, None)
    rows = []
    for method, pruner in pruners.items():
        say(f"counting: {method}")
        added(subject, pruner)
        row = _row(method, pruner, stock, added(subject, pruner))
        rows.append(row.model_copy(update=_timed(subject, pruner)))
    shape = setup.shape
    return OverheadResults(
        runs=[run_of({"model": setup.name}, setup.device)],
        shape=setup.name,
        device=setup.device,
        attention=setup.attention,
        layers=subject.model.config.get_text_config().num_hidden_layers if shape is None else shape.text.layers,
        tiles=setup.tiles,
        batch=setup.batch,
        unpruned=sum(stock[0].operations.values()),
        rows=rows,
    )


def _row(method: str, pruner: TokenPruner, stock: Sequence[Counts], pruned: Sequence[Counts]) -> OverheadRow:
    totals = [
        [sum(mine.values()) - sum(own.values()) for mine, own in ((p.operations, s.operations), (p.reads, s.reads))]
        for p, s in zip(pruned, stock, strict=True)
    ]
    operations = {phase: number for phase, number in pruned[0].operations.items() if phase is not None}
    reads = {phase: number for phase, number in pruned[0].reads.items() if phase is not None}
    more = pruned[0].operations[None] - stock[0].operations[None]
    return OverheadRow(
        method=method,
        keep_ratio=pruner.keep_ratio,
        layer=pruner.layer,
        operations=totals[0][0],
        reads=totals[0][1],
        operations_by_phase={**operations, **({PARTIAL: more} if more else {})},
        reads_by_phase=reads,
        decode_operations=totals[1][0],
        decode_reads=totals[1][1],
    )
