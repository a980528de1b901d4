"""Accuracy with any set of methods and keep ratios: which rows there are, how each is measured and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from ptprune.bench.examinee import Examinee
from ptprune.bench.items import Item, is_right
from ptprune.bench.statistics import decode, difference, interval, mean
from ptprune.bench.views import DOWNSAMPLE, THUMBNAIL, Views
from ptprune.methods import METHODS
from ptprune.pruner import TokenPruner
from ptprune.results.file import key

UNPRUNED, RANDOM, PTP = "none", "random", "ptp"
WITHOUT_PRUNER = (UNPRUNED, THUMBNAIL, DOWNSAMPLE)
BASELINES = (*WITHOUT_PRUNER, RANDOM)
"""In every table."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "without region level": {"region": "uniform"},
    "without token level": {"alpha": 1.0},
    "without instruction level": {"alpha": 0.0},
    **{f"layer {layer}": {"layer": layer} for layer in (0, 1, 2, 3)},
    **{f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)},
    **{f"temperature {value:g}": {"temperature": value} for value in (0.25, 0.5, 1.0, 2.0, 4.0)},
    **{f"thumbnail {name}": {"thumbnail": name} for name in ("ratio", "whole", "region")},
}
"""Variants of PTP by name."""


@dataclass(frozen=True)
class Arm:
    """One row to be measured.

    Attributes:
        method: a name of ``METHODS``, or one of ``WITHOUT_PRUNER``.
        keep_ratio: 1 for the unpruned model, None where there is nothing to choose.
        given: settings of the method that differ from its defaults.
        name: of the row in tables.
    """

    method: str
    keep_ratio: float | None
    given: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the method but how much it keeps, as JSON knows them."""
        pruner = self.pruner
        if pruner is None:
            return {}
        values = {setting.name: getattr(pruner, setting.name) for setting in fields(pruner)}
        return json.loads(json.dumps({n: v for n, v in values.items() if n not in ("keep_ratio", "keep_tokens")}))

    @property
    def pruner(self) -> TokenPruner | None:
        """The method with these settings; None for what needs no pruner."""
        if self.method in WITHOUT_PRUNER:
            return None
        ratio: dict[str, Any] = {} if self.keep_ratio is None else {"keep_ratio": self.keep_ratio}
        return METHODS[self.method](**self.given, **ratio)

    @property
    def row(self) -> dict[str, Any]:
        """What the row says before it is measured."""
        return {"method": self.method, "keep_ratio": self.keep_ratio, "settings": self.settings}

    @property
    def key(self) -> str:
        """The same for arms that measure the same."""
        return key(self.row)


def plan(methods: Sequence[str], ratios: Sequence[float], given: dict[str, Any], layer: int | None = None) -> list[Arm]:
    """The rows of a comparison; the baselines are always among them.

    Args:
        given: settings of PTP.
        layer: where every method drops; None: each at its own.

    Raises:
        ValueError: where a method cannot drop there.
    """
    common = {} if layer is None else {"layer": layer}
    names = [UNPRUNED, THUMBNAIL, *(name for name in methods if name not in BASELINES), RANDOM, DOWNSAMPLE]
    # PTP first: it is what others are compared to
    names.sort(key=lambda name: (name not in (UNPRUNED, THUMBNAIL), name != PTP))
    settings = {name: {**common, **(given if name == PTP else {})} for name in names}
    return [arm for name in settings for arm in _arms(name, ratios, settings[name], known=common)]


def plan_ablation(ratios: Sequence[float], given: dict[str, Any]) -> list[Arm]:
    """The rows of the ablation table: PTP, its variants, the baselines.

    Args:
        given: settings that all variants share unless the variant is about them.
    """
    arms = plan([PTP], ratios, given)
    return arms + [arm for name, change in ABLATIONS.items() for arm in _arms(PTP, ratios, {**given, **change}, name)]


def _arms(
    method: str, ratios: Sequence[float], given: dict[str, Any], name: str = "", known: Container[str] = ()
) -> list[Arm]:
    """Rows of one method; unless they have a name, they are told by their settings, but for those ``known``."""
    if method == UNPRUNED:
        return [Arm(method, 1.0, name="unpruned")]
    if method == THUMBNAIL:
        return [Arm(method, None, name="thumbnail alone")]
    told = ", ".join(f"{setting}={value}" for setting, value in given.items() if setting not in known)
    return [Arm(method, ratio, given, name or f"{method} {told}".strip()) for ratio in ratios]


def fits(method: str, layer: int) -> bool:
    """Whether a method can drop tokens before this layer."""
    try:
        METHODS[method](layer=layer)
    except ValueError:
        return False
    return True


def measure(
    arms: Sequence[Arm],
    items: Sequence[Item],
    examinee: Examinee,
    on_row: Callable[[Arm, dict[str, Any]], None],
    on_batch: Callable[[Arm, int], None] = lambda arm, items: None,
) -> None:
    """Measure rows one after the other.

    Args:
        on_row: given each finished row: which items were answered right ("0110..."), and the tokens kept.
        on_batch: told how many items of a row are done besides those that it was told of before.
    """
    views = Views(examinee)
    for arm in arms:
        given, kept = examinee.answers(items, arm.pruner, views.of(arm.method, arm.keep_ratio), partial(on_batch, arm))
        right = "".join("01"[is_right(answer, item.answer)] for answer, item in zip(given, items, strict=True))
        on_row(arm, {**arm.row, "kept_tokens": round(kept, 2), "right": right})


def finish(measured: Sequence[dict[str, Any]], kinds: Sequence[str], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with everything that follows from which items were right.

    Args:
        measured: rows of ``measure``, the unpruned model's among them.
        kinds: of each item.
        reference: settings of the PTP that the others are compared to, at the same keep ratio.
    """
    marks = {key(row): decode(row["right"]) for row in measured}
    unpruned = next((marks[key(row)] for row in measured if row["method"] == UNPRUNED), None)
    rows = []
    for row in measured:
        right = marks[key(row)]
        low, high = interval(right)
        own = {"method": PTP, "keep_ratio": row["keep_ratio"], "settings": reference}
        comparable = key(own) in marks and key(own) != key(row)
        rows.append(
            {
                "method": row["method"],
                "keep_ratio": row["keep_ratio"],
                "settings": row["settings"],
                "accuracy": round(mean(right), 2),
                "low": round(low, 2),
                "high": round(high, 2),
                "retention": round(mean(right) / mean(unpruned) * 100, 2)
                if unpruned is not None and unpruned.any()
                else None,
                "by_kind": {
                    kind: round(mean(right[[k == kind for k in kinds]]), 2) for kind in dict.fromkeys(kinds) if kind
                },
                "kept_tokens": row["kept_tokens"],
                "vs_ptp": difference(right, marks[key(own)]) if comparable else None,
                "right": row["right"],
            }
        )
    return rows
