"""Measures the time and memory that pruning costs and saves: arms in turns, medians of ratios, and counts beside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ptprune.bench.arms import IDEAL, UNPRUNED, Arm, Sample, check_kept, rotated, run_arm, spread
from ptprune.bench.memory import peak_bytes
from ptprune.bench.subject import Setup, Subject, prepare
from ptprune.bench.warm_up import WARM_UP_TOKENS, Say, Warm, warm_up, warm_up_pruned
from ptprune.cost import Encoding, Prompt, patch_rows_of, pruned_cost, unpruned_cost
from ptprune.pruner import TokenPruner
from ptprune.results.file import fingerprint, run_of
from ptprune.results.rows import SpeedPicture, SpeedRatios, SpeedResults, SpeedRow, Spread, Tokens
from ptprune.scores.evidence import INSTRUCTION_ROWS
from ptprune.shapes import SHAPES

PHASES = ("vision_s", "select_s", "prefill_s", "decode_s_per_token", "ttft_s")


def measure(
    setup: Setup, pruned: Sequence[Arm], rounds: int, new_tokens: int, say: Say = lambda text: None
) -> SpeedResults:
    """The results of ``ptprune bench speed``, see docs/benchmarks-speed.md.

    Args:
        pruned: see ``pruned_arms``.
        new_tokens: at least two: the first pass and what decoding a token takes.
        say: told what is being done.
    """
    threads = torch.get_num_threads()
    say("building the model")
    subject = prepare(setup)
    for arm in pruned:  # refuses settings that do not fit the model before anything is computed
        assert arm.pruner is not None
        with arm.pruner(subject.model):
            pass
    unpruned = Arm(UNPRUNED)
    warm_up(setup, subject, unpruned, say)
    pruned, warm = warm_up_pruned(setup, subject, pruned, say)
    ideals = {length: Arm(IDEAL, length=length) for length in sorted({each.length for each in warm.values()})}
    for arm in ideals.values():
        warm_up(setup, subject, arm, say)
    arms = [unpruned, *pruned, *ideals.values()]
    samples: dict[str, list[Sample]] = {arm.label: [] for arm in arms}
    for number in range(rounds):
        for arm in rotated(arms, number):
            say(f"round {number + 1} of {rounds}: {arm.label}")
            samples[arm.label].append(run_arm(subject, arm, new_tokens, setup.device))
    stock = samples[unpruned.label]
    held = {arm.label: arm.length or (warm[arm.label].length if arm.label in warm else subject.length) for arm in arms}
    for arm in arms[1:]:
        for sample in samples[arm.label]:
            check_kept(arm, sample, stock[0], subject.length, held[arm.label])
    whole = next(warm[arm.label] for arm in pruned if arm.inputs is None)
    after = {label: each.length for label, each in warm.items()}
    tokens = Tokens(visual=whole.image.num_tokens, other=whole.other, before=subject.length, after=after)
    macs = {arm.label: _count(setup, subject, arm, warm.get(arm.label, whole)) for arm in arms}

    peaks: dict[str, int | None] = {}
    for arm in arms:
        if torch.device(setup.device).type == "cpu":
            say(f"measuring memory: {arm.label}")
            peaks[arm.label] = peak_bytes(partial(run_arm, subject, arm, WARM_UP_TOKENS, setup.device))
        else:
            peaks[arm.label] = max((s.peak_bytes for s in samples[arm.label] if s.peak_bytes is not None), default=None)
    ratios = {}
    for label, each in warm.items():
        peak, most = peaks[label], peaks[unpruned.label]
        relative = None if peak is None or not most else peak / most
        ratios[label] = _ratios(stock, samples[label], samples[ideals[each.length].label], relative)
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
        picture=SpeedPicture(
            kind=setup.picture.kind,
            seed=setup.picture.seed,
            background=subject.drawn.background,
            filled_tiles=subject.drawn.filled,
        ),
        rows=[
            SpeedRow(
                arm=arm.name,
                method=arm.method,
                label=None if arm.label == arm.method or arm.method is None else arm.label,
                encoder=arm.encoder,
                keep_ratio=None if arm.pruner is None else arm.pruner.keep_ratio,
                layer=None if arm.pruner is None else arm.pruner.layer,
                settings=None if arm.pruner is None else _settings(arm.pruner),
                encoded_tiles=warm[arm.label].tiles if arm.label in warm else None,
                encoded_tokens=warm[arm.label].image.encoded_tokens if arm.label in warm else None,
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


def _settings(pruner: TokenPruner) -> dict[str, Any] | None:
    """The settings that differ from the method's own and have no column; None where there are none."""
    return {name: value for name, value in pruner.differing().items() if name not in ("keep_ratio", "layer")} or None


def _count(setup: Setup, subject: Subject, arm: Arm, warm: Warm) -> dict[str, int] | None:
    """Multiply-accumulates of the whole batch by phase; None where the family or the method cannot be counted."""
    shape, image = subject.shape, warm.image
    if shape is None:
        return None
    encoded, rest = divmod(image.num_tokens, shape.tile_tokens)
    prompt = Prompt(encoded - (encoded > 1), warm.other)
    if rest or prompt.encoded != encoded:
        return None
    if arm.pruner is not None:
        if warm.tiles is None:
            return None
        ratio, settings = len(image.kept) / image.num_tokens, arm.pruner
        encoding = Encoding.of(settings, warm.tiles - (encoded > 1), settings.vision_layer)
        if encoding.groups(shape, prompt, ratio) * image.encoded_tiles != image.encoded_tokens:
            return None
        needs = frozenset() if settings.keeps_all() else settings.needs
        rows = patch_rows_of(shape.vision, needs)
        instruction = setup.text_tokens if setup.shape is not None else warm.other
        instruction = instruction if needs & INSTRUCTION_ROWS and ratio < 1 else 0
        cost = pruned_cost(
            shape,
            prompt,
            ratio,
            settings.layer,
            instruction=instruction,
            patch_rows=rows,
            encoding=encoding,
            stages=settings.schedule(shape.text.layers, image.num_tokens, len(image.kept)),
        )
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
        vision_vs_unpruned=ratio(unpruned, "vision_s"),
        select_share=ratio(unpruned, "prefill_s", "select_s"),
        ttft_vs_unpruned=ratio(unpruned, "ttft_s"),
        decode_vs_unpruned=ratio(unpruned, "decode_s_per_token"),
        kv=pruned[0].kv_bytes / unpruned[0].kv_bytes,
        peak=peak,
    )
