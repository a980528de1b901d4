"""What pruning costs and brings in time and memory: arms in turns, medians of ratios, and counts beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ptprune.bench.arms import IDEAL, PRUNED, UNPRUNED, Arm, Sample, check_kept, kept_length, run_arm
from ptprune.bench.memory import measured_apart
from ptprune.bench.plan import Plan
from ptprune.bench.subject import Subject, prepare
from ptprune.bench.timing import rotated, spread
from ptprune.cost import Cost, Prompt, pruned_cost, unpruned_cost
from ptprune.results.origin import run_of
from ptprune.results.rows import SpeedRatios, SpeedResults, SpeedRow, Tokens
from ptprune.scores.evidence import INSTRUCTION_ROWS

PHASES = ("vision_s", "select_s", "prefill_s", "decode_s_per_token", "ttft_s")
WARM_UP_TOKENS = 2
Say = Callable[[str], None]


def measure(plan: Plan, say: Say = lambda text: None) -> SpeedResults:
    """The results of ``ptprune bench speed``, see docs/benchmarks-speed.md."""
    setup, threads = plan.setup, torch.get_num_threads()
    say("building the model")
    subject = prepare(setup)
    unpruned = Arm(UNPRUNED)
    pruned = [Arm(PRUNED, method, pruner) for method, pruner in plan.pruners.items()]
    kept = {}
    for arm in [unpruned, *pruned]:  # initialises kernels and buffers, and tells which tokens stay
        say(f"warming up: {arm.label}")
        run_arm(subject, arm, WARM_UP_TOKENS, setup.device)
        if arm.method is not None and arm.pruner is not None:
            kept[arm.method] = kept_length(arm.pruner)
    ideals = {length: Arm(IDEAL, length=length) for length in sorted(set(kept.values()))}
    for arm in ideals.values():
        say(f"warming up: {arm.label}")
        run_arm(subject, arm, WARM_UP_TOKENS, setup.device)

    arms = [unpruned, *pruned, *ideals.values()]
    samples: dict[str, list[Sample]] = {arm.label: [] for arm in arms}
    for number in range(plan.rounds):
        for arm in rotated(arms, number):
            say(f"round {number + 1} of {plan.rounds}: {arm.label}")
            samples[arm.label].append(run_arm(subject, arm, plan.new_tokens, setup.device))
    for arm in [*pruned, *ideals.values()]:
        length = kept[arm.method] if arm.method is not None else arm.length
        assert length is not None
        for sample in samples[arm.label]:
            check_kept(arm, sample, samples[unpruned.label][0], subject.length, length)
    tokens = _tokens(plan, subject, pruned, kept)
    counts = {arm.label: _count(plan, subject, arm, tokens) for arm in arms}
    subject_length = subject.length
    del subject

    peaks: dict[str, int | None] = {}
    for arm in arms:
        measured = [sample.peak_bytes for sample in samples[arm.label] if sample.peak_bytes is not None]
        if torch.device(setup.device).type == "cpu":
            say(f"measuring memory: {arm.label}")
            peaks[arm.label] = measured_apart(setup, arm, plan.new_tokens, threads)
        else:
            peaks[arm.label] = max(measured, default=None)

    held = {arm.label: arm.length or kept.get(arm.method or "", subject_length) for arm in arms}
    rows = [_row(arm, held[arm.label], samples[arm.label], peaks[arm.label], counts[arm.label]) for arm in arms]
    ratios = {}
    for arm in pruned:
        assert arm.method is not None
        peak, whole = peaks[arm.label], peaks[unpruned.label]
        ratios[arm.method] = _ratios(
            samples[unpruned.label],
            samples[arm.label],
            samples[ideals[kept[arm.method]].label],
            None if peak is None or not whole else peak / whole,
        )
    shape = setup.shape
    return SpeedResults(
        runs=[run_of({"model": plan.fingerprint}, setup.device)],
        shape=plan.name,
        device=setup.device,
        dtype=setup.dtype,
        attention=setup.attention,
        layers=shape.text.layers if shape else None,
        layers_of_shape=plan.full_layers,
        vision_layers=shape.vision.layers if shape else None,
        vision_layers_of_shape=plan.full_vision_layers,
        batch=setup.batch,
        rounds=plan.rounds,
        new_tokens=plan.new_tokens,
        threads=threads,
        tiles=setup.tiles,
        tokens=tokens,
        rows=rows,
        ratios=ratios,
        samples=[
            {label: {phase: getattr(of_arm[number], phase) for phase in PHASES} for label, of_arm in samples.items()}
            for number in range(plan.rounds)
        ],
    )


def _tokens(plan: Plan, subject: Subject, pruned: Sequence[Arm], kept: Mapping[str, int]) -> Tokens:
    """Of one prompt: how many of its tokens may be pruned, how many are text or newlines, and what stays."""
    report = pruned[0].pruner.report if pruned[0].pruner is not None else None
    assert report is not None
    visual = sum(image.num_tokens for image in report.images if image.sample == 0)
    return Tokens(visual=visual, other=subject.length - visual, before=subject.length, after=dict(kept))


def _count(plan: Plan, subject: Subject, arm: Arm, tokens: Tokens) -> dict[str, int] | None:
    """Multiply-accumulates of the whole batch by phase; None where the family, or what was cut, cannot be counted."""
    shape, setup = subject.shape, plan.setup
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
    elif arm.length is not None:  # a text of that length
        cost = unpruned_cost(shape, Prompt(0, arm.length))
    else:
        cost = unpruned_cost(shape, prompt)
    return _macs(cost, setup.batch)


def _macs(cost: Cost, batch: int) -> dict[str, int]:
    phases = ("vision", "projector", "select", "prefill", "lm_head", "first_token", "decode_per_token")
    return {phase: batch * getattr(cost, phase) for phase in phases}


def _row(arm: Arm, tokens: int, samples: Sequence[Sample], peak: int | None, macs: dict[str, int] | None) -> SpeedRow:
    return SpeedRow(
        arm=arm.name,
        method=arm.method,
        keep_ratio=None if arm.pruner is None else arm.pruner.keep_ratio,
        layer=None if arm.pruner is None else arm.pruner.layer,
        tokens=tokens,
        **{phase: spread([getattr(sample, phase) for sample in samples]) for phase in PHASES},
        peak_bytes=peak,
        kv_bytes=samples[0].kv_bytes,
        macs=macs,
    )


def _ratios(
    unpruned: Sequence[Sample], pruned: Sequence[Sample], ideal: Sequence[Sample], peak: float | None
) -> SpeedRatios:
    """Round by round, so that a machine that slows down slows both sides."""
    rounds = list(zip(unpruned, pruned, ideal, strict=True))
    return SpeedRatios(
        prefill_vs_unpruned=spread([mine.prefill_s / stock.prefill_s for stock, mine, _ in rounds]),
        prefill_vs_ideal=spread([mine.prefill_s / short.prefill_s for _, mine, short in rounds]),
        select_share=spread([mine.select_s / stock.prefill_s for stock, mine, _ in rounds]),
        ttft_vs_unpruned=spread([mine.ttft_s / stock.ttft_s for stock, mine, _ in rounds]),
        decode_vs_unpruned=spread([mine.decode_s_per_token / stock.decode_s_per_token for stock, mine, _ in rounds]),
        kv=pruned[0].kv_bytes / unpruned[0].kv_bytes,
        peak=peak,
    )
