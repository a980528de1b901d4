"""Candidates that a benchmark compares: methods with their settings at keep ratios, and baselines without a pruner."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ptprune.bench.encodings import BOTH, PATCHES, SALIENT, middle, settings_of
from ptprune.bench.encodings import RANDOM as RANDOM_TILES
from ptprune.encoding import SPARING, EncoderSettings
from ptprune.errors import SettingError
from ptprune.methods import METHODS, PaperTokenPruning, PyramidTokenPruning
from ptprune.pruner import TokenPruner
from ptprune.results.rows import Row

NO_PRUNING, THUMBNAIL_ALONE, DOWNSAMPLE, RANDOM, PTP = "none", "thumbnail", "downsample", "random", "ptp"
FEWER_TILES = "fewer-tiles"
"""PTP on a picture that the processor cuts into fewer tiles, about as many as PTP with salient tiles encodes."""
WITHOUT_PRUNER = (NO_PRUNING, THUMBNAIL_ALONE, DOWNSAMPLE)
BASELINES = (*WITHOUT_PRUNER, RANDOM)
"""Every table has these."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "the paper's": PaperTokenPruning().differing(PyramidTokenPruning),
    "with region level": {"region": "cls-similarity"},
    "without token level": {"alpha": 1.0},
    "without instruction level": {"alpha": 0.0},
    "without neighbourhood": {"instruction": "attention"},
    "choose top": {"choose": "top"},
    "choose coverage": {"choose": "coverage"},
    "within tile budgets": {"ranking": "tile"},
    "in one cut": {"first_ratio": 0.0},
    **{f"layer {layer}": {"layer": layer} for layer in (0, 1, 2, 3)},
    **{f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.0, 0.25, 0.5, 0.6, 0.75, 1.0)},
    **{f"power {power:g}": {"power": power} for power in (0.25, 0.5, 1.0)},
    **{
        f"temperature {value:g}": {"region": "cls-similarity", "temperature": value}
        for value in (0.25, 0.5, 1.0, 2.0, 4.0)
    },
    **{f"thumbnail {name}": {"thumbnail": name} for name in ("ratio", "whole")},
}
"""Variants of PTP by name."""


def encodings(tower_layers: int | None) -> dict[str, dict[str, Any]]:
    """Variants of PTP that encode less of a picture, by name: ours, and what they have to beat at equal tower work.

    Args:
        tower_layers: of the vision tower. Where this is not known, no variant drops patches inside it.
    """
    found = {"salient tiles": settings_of(SALIENT), "salient tiles, others as background": SPARING}
    if tower_layers is not None and tower_layers > 1:
        layer = middle(tower_layers)
        found |= {"patches": settings_of(PATCHES, layer), "salient tiles and patches": settings_of(BOTH, layer)}
    return found | {"random tiles": settings_of(RANDOM_TILES)}


@dataclass(frozen=True)
class Candidate:
    """One method at one keep ratio."""

    method: str  # a name of ``METHODS``, one of ``WITHOUT_PRUNER``, or ``FEWER_TILES``
    keep_ratio: float | None  # 1 for the unpruned model, None where there is nothing to choose
    given: dict[str, Any] = field(default_factory=dict)  # settings of the method that differ from its defaults
    name: str = ""  # in tables
    variant: str = ""  # the name in ``ABLATIONS`` or ``encodings``; ``PTP`` for what the variants are compared with

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the method but how much it keeps, as plain JSON; those of the encoder where they are not the
        defaults, so that rows from before there were any stay comparable."""
        pruner = self.pruner
        if pruner is None:
            return {}
        values = {setting.name: getattr(pruner, setting.name) for setting in fields(pruner)}
        usual = {setting.name for setting in fields(EncoderSettings)} - pruner.differing(EncoderSettings).keys()
        values = {n: v for n, v in values.items() if n not in usual}
        return json.loads(json.dumps({n: v for n, v in values.items() if n not in ("keep_ratio", "keep_tokens")}))

    @property
    def pruner(self) -> TokenPruner | None:
        """The method with these settings; None for what needs no pruner."""
        if self.method in WITHOUT_PRUNER:
            return None
        ratio: dict[str, Any] = {} if self.keep_ratio is None else {"keep_ratio": self.keep_ratio}
        return METHODS[PTP if self.method == FEWER_TILES else self.method](**self.given, **ratio)

    @property
    def key(self) -> str:
        """The same for candidates that measure the same."""
        return key(self)

    def of_row(self, run: int) -> dict[str, Any]:
        """The fields of ``Row``."""
        return {"run": run, "method": self.method, "keep_ratio": self.keep_ratio, "settings": self.settings}


def key(one: Candidate | Row) -> str:
    """The ``Candidate.key``, also of the one that a row was measured with."""
    ratio = None if one.keep_ratio is None else float(one.keep_ratio)
    return json.dumps([one.method, ratio, one.settings], sort_keys=True)


def compare(
    methods: Sequence[str] | None,
    ratios: Sequence[float],
    given: Mapping[str, dict[str, Any]],
    layer: int | None = None,
) -> list[Candidate]:
    """A comparison of methods; the baselines are always part of it, PTP comes first.

    Args:
        methods: None for all that can drop before ``layer``.
        given: method -> settings.
        layer: where every method drops; None: each at its own.

    Raises:
        SettingError: where one of the methods cannot drop there.
    """
    common = {} if layer is None else {"layer": layer}
    if layer is not None:
        unfit = [name for name in (methods or METHODS) if name in METHODS and not _fits(name, layer)]
        if methods is None:
            methods = [name for name in METHODS if name not in unfit]
        elif unfit:
            raise SettingError(f"layer {layer}: {unfit[0]} cannot drop there; leave it out")
    compared = [name for name in (methods or METHODS) if name not in BASELINES]
    names = [NO_PRUNING, THUMBNAIL_ALONE, *compared, RANDOM, DOWNSAMPLE]
    names.sort(key=lambda name: (name not in (NO_PRUNING, THUMBNAIL_ALONE), name != PTP))
    settings = {name: {**common, **given.get(name, {})} for name in names}
    return [one for name in settings for one in _at(name, ratios, settings[name], known=common)]


def ablate(
    ratios: Sequence[float], given: dict[str, Any], variants: Mapping[str, dict[str, Any]] = ABLATIONS
) -> list[Candidate]:
    """PTP, its variants and the baselines.

    Args:
        given: settings that all variants share, except for the one that a variant is about.
    """
    compared = [replace(one, variant=PTP) if one.method == PTP else one for one in compare([PTP], ratios, {PTP: given})]
    return compared + [
        replace(one, variant=name)
        for name, change in variants.items()
        for one in _at(PTP, ratios, {**given, **change}, name)
    ]


def encode(ratios: Sequence[float], given: dict[str, Any], tower_layers: int | None, tiled: bool) -> list[Candidate]:
    """PTP with the whole picture encoded, its ``encodings``, and the baselines.

    Args:
        tiled: whether the processor can be told how many tiles to make.
    """
    fewer = [replace(one, variant="fewer tiles") for one in _at(FEWER_TILES, ratios, given, "fewer tiles")]
    return ablate(ratios, given, encodings(tower_layers)) + (fewer if tiled else [])


def _at(
    method: str, ratios: Iterable[float], given: dict[str, Any], name: str = "", known: Container[str] = ()
) -> list[Candidate]:
    """One method at all ratios; unless it has a name, its settings are its name, except those in ``known``."""
    if method == NO_PRUNING:
        return [Candidate(method, 1.0, name="unpruned")]
    if method == THUMBNAIL_ALONE:
        return [Candidate(method, None, name="thumbnail alone")]
    changed = ", ".join(f"{setting}={value}" for setting, value in given.items() if setting not in known)
    return [Candidate(method, ratio, given, name or f"{method} {changed}".strip()) for ratio in ratios]


def _fits(method: str, layer: int) -> bool:
    """Whether a method can drop tokens before this layer."""
    try:
        METHODS[method](layer=layer)
    except ValueError:
        return False
    return True
