"""Measures the accuracy of any set of candidates that have no row yet, and compares their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ptprune.bench.candidates import FEWER_TILES, NO_PRUNING, PTP, Candidate, key
from ptprune.bench.examinee import Examinee, Size, View, Views
from ptprune.bench.items import Item, mark
from ptprune.bench.statistics import decode, difference, interval, marks_of, mean
from ptprune.errors import UserError
from ptprune.methods import METHODS
from ptprune.pruner import TokenPruner
from ptprune.results.file import go_on, save
from ptprune.results.rows import AccuracyResults, AccuracyRow, Run

# fingerprints say nothing to a reader
OTHER = {"model": "another model", "items": "other items", "plugin": "another plugin, or none"}


@dataclass
class AccuracyRun:
    """The candidates that this run was asked for, and the rows of earlier runs in the same file.

    Raises:
        UserError: where the file holds something else, results of another identity, or could not be written.
    """

    results: AccuracyResults  # the file as it will be, without rows; its last run is this one
    candidates: Sequence[Candidate]  # in the order of the tables
    items: Sequence[Item]
    reference: dict[str, Any]  # settings of the PTP that the others are compared with, at the same keep ratio
    path: Path | None = None  # of the file, if there is one
    _measured: dict[str, AccuracyRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        [run] = self.results.runs
        if self.path is not None and (earlier := go_on(self.path, self.results)) is not None:
            for before in earlier.runs:
                _check_identity(self.path, before, run)
            for row in earlier.results:  # of two alike the first counts
                self._measured.setdefault(key(row), row)
        self._run = self.results.runs.index(run)

    @property
    def missing(self) -> list[Candidate]:
        """Candidates without a row, each once."""
        return list({one.key: one for one in self.candidates if one.key not in self._measured}.values())

    def measure(self, examinee: Examinee, on_batch: Callable[[str, int], None] = lambda what, items: None) -> None:
        """Measure what is missing; a finished row is on the disk before the next one begins.

        Args:
            on_batch: called with what is measured and how many more items are done.
        """
        views = Views(examinee)
        for one in self.missing:
            told = partial(on_batch, f"{one.name} {'' if one.keep_ratio is None else one.keep_ratio}")
            view, pruner, shown = views.of(one.method, one.keep_ratio), one.pruner, 1.0
            if one.method == FEWER_TILES:
                view, pruner, shown = self._fewer(one, views)
            given = examinee.answers(self.items, pruner, view, told)
            pairs = zip(given.texts, self.items, strict=True)
            marks = [mark(text, item.answer, item.listing) for text, item in pairs]
            right = "".join("01"[value == 1] for value in marks)
            parts = [round(value, 4) for value in marks] if any(item.listing for item in self.items) else None
            kinds = [item.kind for item in self.items]
            work = examinee.work(self.items, pruner, view)
            row = row_of(one, right, round(given.kept_tokens, 2), kinds, self._run, parts, work)
            shares = {name: round(getattr(given, name) * shown, 4) for name in ("encoded_tiles", "encoded_tokens")}
            whole = {name: None if share == 1 else share for name, share in shares.items()}
            self._measured[one.key] = row.model_copy(update=whole)
            if self.path is not None:
                asked, keys = self.document(), {other.key for other in self.candidates}
                others = [row for name, row in self._measured.items() if name not in keys]
                save(self.path, asked.model_copy(update={"results": asked.results + others}))

    def _fewer(self, one: Candidate, views: Views) -> tuple[Callable[[Size], View], TokenPruner, float]:
        """What shows fewer tiles, a pruner that keeps of them as many tokens as PTP keeps of all, and their share."""
        assert one.keep_ratio is not None
        salient = self._measured[Candidate(PTP, one.keep_ratio, {**one.given, "tiles": "salient"}).key]
        view = views.fewer(salient.encoded_tiles or 1.0)
        pictures = [item.size for item in self.items]
        shown = sum(views.examinee.tokens(size, view(size)) for size in pictures)
        share = shown / sum(map(views.examinee.tokens, pictures))
        pruner = METHODS[PTP](**one.given, keep_ratio=min(1.0, one.keep_ratio / share))
        return view, pruner, share

    def document(self) -> AccuracyResults:
        """The rows that were asked for, as far as they are finished, compared with each other."""
        rows: dict[str, AccuracyRow] = {}
        for one in self.candidates:
            if (row := rows.get(one.key) or self._measured.get(one.key)) is not None:
                names = [*row.variants, *filter(None, [one.variant])]
                rows[one.key] = row.model_copy(update={"variants": list(dict.fromkeys(names))})
        return self.results.model_copy(update={"results": finish(list(rows.values()), self.reference)})

    def lines(self) -> dict[str, list[AccuracyRow]]:
        """Name in tables -> its rows."""
        rows = {key(row): row for row in self.document().results}
        lines: dict[str, list[AccuracyRow]] = {}
        for one in self.candidates:
            lines.setdefault(one.name, []).append(rows[one.key])
        return lines


def _check_identity(path: Path, earlier: Run, now: Run) -> None:
    for name, value in now.identity.items():
        if (other := earlier.identity.get(name)) != value:
            what = OTHER.get(name, f"{name} {other}, not {value}")
            raise UserError(f"--out {path}: holds results of {what}; give another file, or delete it")


def row_of(
    one: Candidate,
    right: str,
    kept_tokens: float,
    kinds: Sequence[str],
    run: int = 0,
    parts: list[float] | None = None,
    work: float | None = None,
) -> AccuracyRow:
    """A row with all that follows from its own answers.

    Args:
        right: a digit an item, 1 for right.
        kinds: of the items.
        parts: marks from 0 to 1, where answers can be right in part; they count instead of ``right``.
        work: up to the first token, as a share of the unpruned model's.
    """
    marks = decode(right) if parts is None else np.array(parts)
    low, high = interval(marks)
    of_kind = {kind: [other == kind for other in kinds] for kind in dict.fromkeys(kinds) if kind}
    return AccuracyRow(
        **one.of_row(run),
        kept_tokens=kept_tokens,
        work=None if work is None else round(work, 4),
        right=right,
        marks=parts,
        accuracy=round(mean(marks), 2),
        low=round(low, 2),
        high=round(high, 2),
        retention=None,
        by_kind={kind: round(mean(marks[mine]), 2) for kind, mine in of_kind.items()},
        vs_ptp=None,
    )


def finish(rows: Sequence[AccuracyRow], reference: dict[str, Any]) -> list[AccuracyRow]:
    """The rows with their retention, and with their difference from PTP at the same keep ratio.

    Args:
        reference: settings of that PTP.
    """
    marks = {key(row): marks_of(row) for row in rows}
    unpruned = next((mean(marks[key(row)]) for row in rows if row.method == NO_PRUNING), None)

    def compared(row: AccuracyRow) -> AccuracyRow:
        mine, ptp = key(row), Candidate(PTP, row.keep_ratio, reference).key
        retention = round(100 * mean(marks[mine]) / unpruned, 2) if unpruned else None
        vs_ptp = difference(marks[mine], marks[ptp]) if ptp in marks and ptp != mine else None
        return row.model_copy(update={"retention": retention, "vs_ptp": vs_ptp})

    return [compared(row) for row in rows]
