"""The rows of an accuracy file as the lines of tables: one line a method or variant, one row a keep ratio."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from ptprune.bench.candidates import (
    ABLATIONS,
    DOWNSAMPLE,
    FEWER_TILES,
    NO_PRUNING,
    PTP,
    RANDOM,
    THUMBNAIL_ALONE,
    Candidate,
    key,
)
from ptprune.methods import METHODS
from ptprune.results.rows import AccuracyResults, AccuracyRow

Line = dict[float, AccuracyRow]
"""Keep ratio -> row."""


def place(method: str) -> int:
    """Where a method stands in tables: ptp first, the baselines last."""
    others = [name for name in METHODS if name not in (PTP, RANDOM)]
    return [PTP, *others, FEWER_TILES, RANDOM, DOWNSAMPLE].index(method)


@cache
def default_settings(method: str) -> dict[str, Any]:
    """A method's default settings, as files write them."""
    return Candidate(method, None).settings


def differing(settings: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not those of ``base``."""
    return {name: settings.get(name) for name in {**settings, **base} if settings.get(name) != base.get(name)}


def changed(row: AccuracyRow) -> dict[str, Any]:
    """The settings of a row that are not its method's defaults."""
    return differing(row.settings, default_settings(row.method))


def in_stages(row: AccuracyRow) -> bool:
    """Whether tokens were dropped before several layers, which is more work than before one at an equal ratio. For rows
    with default settings, but for the layer."""
    if row.method not in METHODS or row.keep_ratio is None:
        return False
    pruner = METHODS[row.method](layer=row.settings["layer"], keep_ratio=row.keep_ratio)
    return len(pruner.cut_layers(1000)) > 1


class Lines:
    """The rows of one file, each once: ``unpruned`` and ``thumbnail``, None where not measured, and the ``others``."""

    def __init__(self, results: AccuracyResults) -> None:
        rows = {key(row): row for row in reversed(results.results)}  # the first of two alike counts
        ordered = [rows[name] for name in dict.fromkeys(map(key, results.results))]
        self.unpruned = next((row for row in ordered if row.method == NO_PRUNING), None)
        self.thumbnail = next((row for row in ordered if row.method == THUMBNAIL_ALONE), None)
        self.others = [row for row in ordered if row.method not in (NO_PRUNING, THUMBNAIL_ALONE)]

    def with_defaults(self) -> dict[str, Line]:
        """Method -> its rows, ptp first."""
        return self._by_method(lambda row: not changed(row))

    def before_layer(self, layer: int) -> dict[str, Line]:
        """Methods that drop before one layer, by default or by ``--layer``, and have their defaults otherwise."""
        return self._by_method(lambda row: set(changed(row)) <= {"layer"} and row.settings.get("layer") == layer)

    @property
    def layers(self) -> list[int]:
        """Layers that some method was told to drop before."""
        told = (row for row in self.others if set(changed(row)) == {"layer"} and not row.variants)
        return sorted({row.settings["layer"] for row in told})

    @property
    def is_ablation(self) -> bool:
        """Whether variants of ptp were measured."""
        return any(row.variants for row in self.others)

    @property
    def compares_methods(self) -> bool:
        """Whether it belongs among the comparisons of methods: every file does that is not only an ablation."""
        baselines = (RANDOM, DOWNSAMPLE)
        return not self.is_ablation or any(row.method not in baselines and not row.variants for row in self.others)

    def variant(self, name: str) -> Line:
        """The rows of one variant of the ablation; ``PTP`` is what the variants are compared with."""
        return {row.keep_ratio: row for row in self.others if name in row.variants and row.keep_ratio is not None}

    def variants(self) -> dict[str, Line]:
        """Names of a variant -> its rows, in the order of ``ABLATIONS``, then of the file. Some settings have several
        names."""
        names: dict[str, list[str]] = {}
        for name in dict.fromkeys([*ABLATIONS, *(name for row in self.others for name in row.variants)]):
            if name != PTP and (line := self.variant(name)):
                row = next(iter(line.values()))
                names.setdefault(json.dumps([row.method, row.settings]), []).append(name)
        return {", ".join(alike): self.variant(alike[0]) for alike in names.values()}

    def left_out(self) -> list[AccuracyRow]:
        """Rows that are in no table, one a method and settings."""
        shown = [row for row in self.others if row.variants]
        if self.compares_methods:
            shown += [row for row in self.others if not set(changed(row)) - {"layer"}]
        if self.is_ablation:
            shown += [row for row in self.others if row.method in (RANDOM, DOWNSAMPLE) and not changed(row)]
        left = {(row.method, json.dumps(row.settings)): row for row in self.others if row not in shown}
        return list(left.values())

    def _by_method(self, wanted: Callable[[AccuracyRow], bool]) -> dict[str, Line]:
        lines: dict[str, Line] = {}
        for row in sorted(filter(wanted, self.others), key=lambda row: place(row.method)):
            if row.keep_ratio is not None:
                lines.setdefault(row.method, {})[row.keep_ratio] = row
        return lines
