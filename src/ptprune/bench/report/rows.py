"""The rows of an accuracy document, sorted by the settings that they were measured with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from ptprune.bench.accuracy import ABLATIONS, DOWNSAMPLE, PTP, RANDOM, UNPRUNED, Arm
from ptprune.bench.report.documents import Document
from ptprune.bench.views import THUMBNAIL
from ptprune.methods import METHODS
from ptprune.results.file import key

Row = dict[str, Any]
Line = dict[float, Row]
"""Keep ratio -> row."""

ORDER = (PTP, *(name for name in METHODS if name not in (PTP, RANDOM)), RANDOM, DOWNSAMPLE)


@cache
def default_settings(method: str) -> dict[str, Any]:
    """As the documents write them."""
    return Arm(method, None).settings


def differing(settings: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The settings that are others than those of ``base``."""
    return {name: settings.get(name) for name in {**settings, **base} if settings.get(name) != base.get(name)}


def changed(row: Row) -> dict[str, Any]:
    """The settings of a row that are not its method's defaults."""
    return differing(row["settings"], default_settings(row["method"]))


def in_stages(method: str) -> bool:
    """Whether it drops tokens at several layers, so that it does more work than others at an equal ratio."""
    return method in METHODS and len(METHODS[method]().cut_layers(1000)) > 1


class Rows:
    """The rows of one document, each once.

    Attributes:
        unpruned, thumbnail: rows that nothing is chosen for; None where not measured.
        others: all the rest.
    """

    def __init__(self, document: Document) -> None:
        rows = {key(row): row for row in reversed(document["results"])}  # the first of two wins
        self.all = [rows[name] for name in dict.fromkeys(map(key, document["results"]))]
        self.unpruned = next((row for row in self.all if row["method"] == UNPRUNED), None)
        self.thumbnail = next((row for row in self.all if row["method"] == THUMBNAIL), None)
        self.others = [row for row in self.all if row["method"] not in (UNPRUNED, THUMBNAIL)]

    def with_defaults(self) -> dict[str, Line]:
        """Method -> its rows, ptp first."""
        return self._lines(lambda row: not changed(row))

    def before_layer(self, layer: int) -> dict[str, Line]:
        """Methods that drop before one layer, by default or because they were made to, and are as usual otherwise."""
        return self._lines(lambda row: set(changed(row)) <= {"layer"} and row["settings"].get("layer") == layer)

    @property
    def layers(self) -> list[int]:
        """Those that some method was made to drop before."""
        return sorted({row["settings"]["layer"] for row in self.others if set(changed(row)) == {"layer"}})

    @property
    def compares_methods(self) -> bool:
        """Whether it belongs among the comparisons: all documents do that are nothing but an ablation."""
        return not self.is_ablation or any(row["method"] not in (PTP, RANDOM, DOWNSAMPLE) for row in self.others)

    @property
    def is_ablation(self) -> bool:
        """Whether it compares variants of ptp that differ in more than the layer."""
        variants = {(row["keep_ratio"], _text({**row["settings"], "layer": 0})) for row in self._ptp()}
        return len(variants) > len({ratio for ratio, _ in variants})

    def base(self) -> dict[str, Any]:
        """The settings of ptp that most variants start from."""
        found = {_text(row["settings"]): row["settings"] for row in self._ptp()}

        def variants(settings: dict[str, Any]) -> int:
            names = {_text({**settings, **change}) for change in ABLATIONS.values()} - {_text(settings)}
            return len(names & set(found))

        return max(found.values(), key=variants)

    def variants(self) -> dict[str, Line]:
        """Names of a variant -> its rows, in the order of ``ABLATIONS``; ptp itself is the variant of several names."""
        base = self.base()
        names: dict[str, list[str]] = {}
        for name, change in ABLATIONS.items():
            names.setdefault(_text({**base, **change}), []).append(name)
        lines = {", ".join(alike): self.ptp(json.loads(settings)) for settings, alike in names.items()}
        return {name: line for name, line in lines.items() if line}

    def left_out(self) -> list[Row]:
        """Rows that are in no table, one a method and settings."""
        shown = [row for row in self.others if not set(changed(row)) - {"layer"}] if self.compares_methods else []
        if self.is_ablation:
            shown += [row for line in (*self.variants().values(), self.ptp(self.base())) for row in line.values()]
            shown += [row for row in self.others if row["method"] in (RANDOM, DOWNSAMPLE) and not changed(row)]
        left = {(row["method"], _text(row["settings"])): row for row in self.others if row not in shown}
        return list(left.values())

    def ptp(self, settings: dict[str, Any]) -> Line:
        """Its rows with these settings."""
        return {row["keep_ratio"]: row for row in self._ptp() if row["settings"] == settings}

    def _ptp(self) -> list[Row]:
        return [row for row in self.others if row["method"] == PTP]

    def _lines(self, wanted: Callable[[Row], bool]) -> dict[str, Line]:
        lines: dict[str, Line] = {}
        for row in sorted(filter(wanted, self.others), key=lambda row: ORDER.index(row["method"])):
            lines.setdefault(row["method"], {})[row["keep_ratio"]] = row
        return lines


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
