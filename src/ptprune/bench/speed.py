"""Measures the time and memory that pruning costs and saves: arms in turns, medians of ratios, and counts beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from ptprune.bench.arms import IDEAL, PRUNED, UNPRUNED, Arm, Sample, check_kept, kept_length, rotated, run_arm, spread
from ptprune.bench.memory import peak_bytes
from ptprune.bench.subject import Setup, Subject, prepare
from ptprune.cost import Prompt, pruned_cost, unpruned_cost
from ptprune.pruner import TokenPruner
from ptprune.results.file import fingerprint, run_of
from ptprune.results.rows import SpeedRatios, SpeedResults, SpeedRow, Spread, Tokens
from ptprune.scores.evidence import INSTRUCTION_ROWS
from ptprune.shapes import SHAPES

PHASES = ("vision_s", "select_s", "prefill_s", "decode_s_per_token", "ttft_s")
WARM_UP_TOKENS = 2
Say = Callable[[str], None]


def measure(
    setup: Setup, pruners: Mapping[str, TokenPruner], rounds: int, new_tokens: int, say: Say = lambda text: None
) -> SpeedResults:
    """The results of ``ptprune bench speed``, see docs/benchmarks-speed.md.

    Args:
        pruners: method -> pruner.
        new_tokens: at least two: the first pass and what decoding a token takes.
        say: told what is being done.
    """
    threads = torch.get_num_threads()
    say("building the model")
    subject = prepare(setup)
    unpruned = Arm(UNPRUNED)
    pruned = {method: Arm(PRUNED, method, pruner) for method, pruner in pruners.items()}

    arms = [unpruned, *pruned.values()]
    _warm_up(subject, arms, setup.device, say)
    kept = {method: kept_length(pruner) for method, pruner in pruners.items()}
    ideals = {length: Arm(IDEAL, length=length) for length in sorted(set(kept.values()))}
    _warm_up(subject, ideals.values(), setup.device, say)
    arms += ideals.values()
    samples: dict[str, list[Sample]] = {arm.label: [] for arm in arms}
    for number in range(rounds):
        for arm in rotated(arms, number):
            say(f"round {number + 1} of {rounds}: {arm.label}")
            samples[arm.label].append(run_arm(subject, arm, new_tokens, setup.device))
    stock = samples[unpruned.label]
    held = {arm.label: arm.length or kept.get(arm.label, subject.length) for arm in arms}
    for arm in arms[1:]:
        for sample in samples[arm.label]:
            check_kept(arm, sample, stock[0], subject.length, held[arm.label])
    report = next(iter(pruners.values())).report
    assert report is not None
    visual = sum(image.num_tokens for image in report.images if image.sample == 0)
    tokens = Tokens(visual=visual, other=subject.length - visual, before=subject.length, after=kept)
    macs = {arm.label: _count(setup, subject, arm, tokens) for arm in arms}

    peaks: dict[str, int | None] = {}
    for arm in arms:
        if torch.device(setup.device).type == "cpu":
            say(f"measuring memory: {arm.label}")
            peaks[arm.label] = peak_bytes(partial(run_arm, subject, arm, WARM_UP_TOKENS, setup.device))
        else:
            peaks[arm.label] = max((s.peak_bytes for s in samples[arm.label] if s.peak_bytes is not None), default=None)
    ratios = {}
    for method in pruned:
        peak, whole = peaks[method], peaks[unpruned.label]
        relative = None if peak is None or not whole else peak / whole
        ratios[method] = _ratios(stock, samples[method], samples[ideals[kept[method]].label], relative)
    shape, full = setup.shape, SHAPES[setup.name] if setup.shape else None
    return SpeedResults(
        runs=[run_of({"model": fingerprint(Path(setup.directory)) if setup.directory else setup.name}, setup.device)],
        shape=setup.name,
        **{name: getattr(setup, name) for name in ("device", "dtype", "attention", "batch", "tiles")},
        layers=shape.text.layers if shape else None,
        layers_of_shape=full.text.layers if full else None,
        vision_layers=shape.vision.layers if shape else None,
        vision_layers_of_shape=full.vision.layers if full else None,
        rounds=rounds,
        new_tokens=new_tokens,
        threads=threads,
        tokens=tokens,
        rows=[
            SpeedRow(
                arm=arm.name,
                method=arm.method,
                keep_ratio=None if arm.pruner is None else arm.pruner.keep_ratio,
                layer=None if arm.pruner is None else arm.pruner.layer,
                tokens=held[arm.label],
                **{phase: spread([getattr(sample, phase) for sample in samples[arm.label]]) for phase in PHASES},
                peak_bytes=peaks[arm.label],
                kv_bytes=samples[arm.label][0].kv_bytes,
                macs=macs[arm.label],
            )
            for arm in arms
        ],
        ratios=ratios,
        samples=[
            {label: {phase: getattr(of_arm[number], phase) for phase in PHASES} for label, of_arm in samples.items()}
            for number in range(rounds)
        ],
    )


def _warm_up(subject: Subject, arms: Iterable[Arm], device: str, say: Say) -> None:
    """Initialises kernels and buffers; tells which tokens stay."""
    for arm in arms:
        say(f"warming up: {arm.label}")
        run_arm(subject, arm, WARM_UP_TOKENS, device)


def _count(setup: Setup, subject: Subject, arm: Arm, tokens: Tokens) -> dict[str, int] | None:
    """Multiply-accumulates of the whole batch by phase; None where the family or the method cannot be counted."""
    shape = subject.shape
    if shape is None:
        return None
    encoded, rest = divmod(tokens.visual, shape.tile_tokens)
    prompt = Prompt(encoded - (encoded > 1), tokens.other)
    if rest or prompt.encoded != encoded:
        return None
    if arm.pruner is not None:
        if len(arm.pruner.cut_layers(shape.text.layers)) > 1:
            return None
        needs, patches = arm.pruner.needs, shape.vision.patches
        rows = patches + 1 if "received_attention" in needs else int("encoder_attention" in needs)
        instruction = setup.text_tokens if setup.shape is not None else tokens.other
        instruction = instruction if needs & INSTRUCTION_ROWS else 0
        ratio, layer = arm.pruner.keep_ratio, arm.pruner.layer
        cost = pruned_cost(shape, prompt, ratio, layer, instruction=instruction, patch_rows=rows)
    else:  # an ideal arm reads a text of its length
        cost = unpruned_cost(shape, prompt if arm.length is None else Prompt(0, arm.length))
    phases = ("vision", "projector", "select", "prefill", "lm_head", "first_token", "decode_per_token")
    return {phase: setup.batch * getattr(cost, phase) for phase in phases}


def _ratios(
    unpruned: Sequence[Sample], pruned: Sequence[Sample], ideal: Sequence[Sample], peak: float | None
) -> SpeedRatios:
    """Round by round, so that a machine that slows down slows both sides."""

    def ratio(over: Sequence[Sample], phase: str, mine: str = "") -> Spread:
        rounds = zip(pruned, over, strict=True)
        return spread([getattr(arm, mine or phase) / getattr(other, phase) for arm, other in rounds])

    return SpeedRatios(
        prefill_vs_unpruned=ratio(unpruned, "prefill_s"),
        prefill_vs_ideal=ratio(ideal, "prefill_s"),
        select_share=ratio(unpruned, "prefill_s", "select_s"),
        ttft_vs_unpruned=ratio(unpruned, "ttft_s"),
        decode_vs_unpruned=ratio(unpruned, "decode_s_per_token"),
        kv=pruned[0].kv_bytes / unpruned[0].kv_bytes,
        peak=peak,
    )
