"""The arms of a speed benchmark: the stock model, pruned ones, and the stock model on a prompt that is as short."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

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


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The order of round ``by``: no arm always runs in another's wake."""
    return [items[(by + place) % len(items)] for place in range(len(items))]


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most over the rounds."""
    return Spread(median=statistics.median(values), min=min(values), max=max(values))


ArmName = Literal["unpruned", "pruned", "ideal"]
UNPRUNED: Final = "unpruned"
PRUNED: Final = "pruned"
IDEAL: Final = "ideal"


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to read a prompt."""

    name: ArmName
    method: str | None = None  # of pruned arms, as is the pruner
    pruner: TokenPruner | None = None
    length: int | None = None  # of ideal arms: the model gets embeddings of as many tokens, and no picture
    encoder: str | None = None  # a name of ``ENCODERS`` where a run compares them
    ratio: float | None = None  # where a run compares several
    inputs: dict[str, Tensor] | None = None  # of another prompt than the subject's

    @property
    def label(self) -> str:
        if self.method is None:
            return self.name if self.length is None else f"{self.name} {self.length}"
        ratio = None if self.ratio is None else f"{self.ratio:g}"
        return " ".join(part for part in (self.method, self.encoder, ratio) if part is not None)


@dataclass(frozen=True)
class Sample:
    """One run: first pass and greedy decoding.

    The prefill is the language model's first pass with the output head and the choice of the first token, without
    vision (ViT and projector) and select (all of the pruner's own work); ``ttft_s`` is all three.
    """

    vision_s: float
    select_s: float
    prefill_s: float
    decode_s_per_token: float  # of the passes after the first
    ttft_s: float
    peak_bytes: int | None  # most memory that torch held on the GPU at a time, weights included; None elsewhere
    kv: tuple[tuple[int, int], ...]  # (tokens, bytes) that each layer's cache holds right after the prefill

    @property
    def kv_bytes(self) -> int:
        return sum(size for _, size in self.kv)


@torch.inference_mode()
def run_arm(subject: Subject, arm: Arm, new_tokens: int, device: str) -> Sample:
    """Read the prompt once and write ``new_tokens`` tokens, at least two."""
    model, on_gpu = subject.model, torch.device(device).type == "cuda"
    inputs, clock = arm.inputs or subject.inputs, EventClock() if on_gpu else Clock()
    if arm.length is not None:  # which tokens they are makes no difference to the work
        last = inputs["input_ids"][:, -1:].expand(-1, arm.length)
        inputs = {"inputs_embeds": model.get_input_embeddings()(last)}
    around: AbstractContextManager[Any] = nullcontext()  # no picture, no vision
    if arm.length is None:
        around = vision_lap(model, clock) if arm.pruner is None else arm.pruner(model, clock=clock)
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


def kept_length(pruner: TokenPruner) -> int:
    """Tokens, text included, that the last prefill left in each row. Raises BrokenPass where rows differ."""
    assert pruner.report is not None
    lengths = {after for _, after in pruner.report.sequence_length}
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
