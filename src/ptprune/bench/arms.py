"""The arms of a speed benchmark: the stock model, pruned ones, and the stock model on a prompt that is as short."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ptprune.asking.meter import vision_lap
from ptprune.bench.subject import Subject
from ptprune.clock import Clock
from ptprune.conventions import cache_of, keep_cache
from ptprune.errors import BrokenPass
from ptprune.pruner import TokenPruner
from ptprune.results.rows import Spread


class EventClock(Clock):
    """A clock that marks laps by events on the GPU's stream, so that the CPU may run ahead as it does in real use.

    ``seconds`` holds nothing before ``settle``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._spans: list[tuple[str, Any, Any]] = []
        self._last: Any = None

    def _count(self) -> None:
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record()
        if self._running:
            self._spans.append((self._running[-1], self._last, event))
        self._last = event

    def settle(self) -> None:
        """Wait for the GPU once, and add up."""
        torch.cuda.synchronize()
        for name, start, end in self._spans:
            self.seconds[name] += start.elapsed_time(end) / 1000  # milliseconds
        self._spans.clear()


def clock_for(device: str) -> Clock:
    """A clock for one run on a device."""
    return EventClock() if torch.device(device).type == "cuda" else Clock()


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The order of round ``by``: no arm always runs in another's wake."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most over the rounds."""
    return Spread(median=statistics.median(values), min=min(values), max=max(values))


ArmName = Literal["unpruned", "pruned", "ideal"]
UNPRUNED: ArmName = "unpruned"
PRUNED: ArmName = "pruned"
IDEAL: ArmName = "ideal"


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to read a prompt.

    Attributes:
        name: ``UNPRUNED``, ``PRUNED`` or ``IDEAL``.
        method: name of the pruning method, of pruned arms.
        length: tokens of the prompt, of ideal arms: embeddings of as many are what the model gets, and no picture.
    """

    name: ArmName
    method: str | None = None
    pruner: TokenPruner | None = None
    length: int | None = None

    @property
    def label(self) -> str:
        return self.method or (self.name if self.length is None else f"{self.name} {self.length}")


@dataclass(frozen=True)
class Sample:
    """One run: first pass and greedy decoding.

    Attributes:
        vision_s: ViT and projector. select_s: all of the pruner's own work. prefill_s: the language model's first pass
            with the output head and the choice of the first token, without the former two. ttft_s: all three.
        decode_s_per_token: of the passes after the first.
        peak_bytes: most memory that torch held on the GPU at a time, weights included; None elsewhere.
        kv: (tokens, bytes) that each layer's cache holds right after the prefill.
    """

    vision_s: float
    select_s: float
    prefill_s: float
    decode_s_per_token: float
    ttft_s: float
    peak_bytes: int | None
    kv: tuple[tuple[int, int], ...]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole cache."""
        return sum(size for _, size in self.kv)


@torch.inference_mode()
def run_arm(subject: Subject, arm: Arm, new_tokens: int, device: str) -> Sample:
    """Read the prompt once and write ``new_tokens`` tokens, at least two."""
    model, on_gpu = subject.model, torch.device(device).type == "cuda"
    inputs = subject.inputs if arm.length is None else _short_inputs(subject, arm.length)
    clock = clock_for(device)
    around: AbstractContextManager[Any] = nullcontext()  # no picture, no vision
    if arm.name == PRUNED:
        assert arm.pruner is not None
        around = arm.pruner(model, clock=clock)
    elif arm.name == UNPRUNED:
        around = vision_lap(model, clock)
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with around:
        with clock.lap("prefill"):
            output = model(**inputs, **keep_cache(model), logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
        cache = cache_of(output)
        kv = tuple((layer.keys.shape[2], layer.keys.nbytes + layer.values.nbytes) for layer in cache.layers)
        with clock.lap("decode"):
            for _ in range(new_tokens - 1):
                output = model(input_ids=token, **keep_cache(model, cache), logits_to_keep=1)
                cache, token = cache_of(output), output.logits[:, -1:].argmax(-1)
        clock.settle()
    vision, select, prefill = (clock.seconds[lap] for lap in ("vision", "select", "prefill"))
    return Sample(
        vision_s=vision,
        select_s=select,
        prefill_s=prefill,
        decode_s_per_token=clock.seconds["decode"] / (new_tokens - 1),
        ttft_s=vision + select + prefill,
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
        kv=kv,
    )


def _short_inputs(subject: Subject, length: int) -> dict[str, Any]:
    """Embeddings of as many tokens; which tokens they are makes no difference to the work."""
    last = subject.inputs["input_ids"][:, -1:].expand(-1, length)
    return {"inputs_embeds": subject.model.get_input_embeddings()(last)}


def kept_length(pruner: TokenPruner) -> int:
    """Tokens, text included, that the last prefill left in each row; the rows of a benchmark are alike.

    Raises:
        BrokenPass: where they were not.
    """
    report = pruner.report
    assert report is not None
    lengths = {after for _, after in report.sequence_length}
    if len(lengths) != 1:
        raise BrokenPass(f"rows of one and the same prompt kept different numbers of tokens: {sorted(lengths)}")
    return lengths.pop()


def check_kept(arm: Arm, sample: Sample, unpruned: Sample, length: int, kept: int) -> None:
    """Every layer's cache holds exactly the tokens that were kept, and exactly their share of the bytes.

    A stock layer with a sliding window holds its window, whatever the prompt's length: there, tokens alone are checked.

    Raises:
        BrokenPass: naming the first layer where that is not so.
    """
    for index, ((tokens, size), (full_tokens, full_size)) in enumerate(zip(sample.kv, unpruned.kv, strict=True)):
        if tokens != kept or (full_tokens == length and size * length != full_size * kept):
            raise BrokenPass(
                f"{arm.label}: the cache of layer {index} holds {tokens} tokens in {size} bytes; {kept} of {length} "
                f"tokens stayed, and those of {full_tokens} tokens take {full_size} bytes"
            )
