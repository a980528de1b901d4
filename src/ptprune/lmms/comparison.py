"""A suite with several arms: what is still to be measured, in which order, and the document that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ptprune.asking.loaded import LoadedModel
from ptprune.bench.accuracy import UNPRUNED, Arm
from ptprune.lmms import harness, table
from ptprune.lmms.processes import processes
from ptprune.lmms.rows import Rows
from ptprune.lmms.suites import PAPER, Benchmark, missing_key
from ptprune.results.file import fingerprint

EXPECTED = "as the paper lists its method; for which model is not known, the scores fit InternVL2-8B"


def plan(methods: Sequence[str], ratios: Sequence[float], given: dict[str, Any]) -> list[Arm]:
    """The arms: at keep ratio 1 all methods are the unpruned model.

    Args:
        given: settings of PTP.
    """
    arms = []
    for ratio in ratios:
        for method in methods if ratio < 1 else [UNPRUNED]:
            arms.append(Arm(method, ratio, given if method == "ptp" else {}))
    return arms


def identify(
    directory: Path, dtype: str, attention: str | None, max_tiles: int | None, limit: int | None
) -> dict[str, Any]:
    """What a row was measured with besides its arm. Rows of another identity are not taken for this run's.

    Args:
        directory: of the checkpoint.
    """
    return {
        "model": fingerprint(directory),
        "dtype": dtype,
        "attention": attention,
        "max_tiles": max_tiles,
        "limit": limit,
        "lmms_eval": version("lmms-eval"),
        "transformers": version("transformers"),
    }


def expected(benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """The paper's listed scores of these benchmarks, and what is known about them."""
    names = [benchmark.name for benchmark in benchmarks]
    return {"about": EXPECTED, "scores": {name: score for name, score in PAPER.items() if name in names}}


@dataclass
class Comparison:
    """A run of a suite.

    Attributes:
        about: the document without rows: ``model``, ``suite``, ``limit``, ``identity`` and maybe ``expected``.
        limit: only so many questions of each benchmark.
        rows: those that are there already, and the new ones.
        include: folder of local tasks.
        on_skip: told of every benchmark that is left out, and why, in the main process.
        skipped: the same, as the document has it.
    """

    about: dict[str, Any]
    benchmarks: Sequence[Benchmark]
    arms: Sequence[Arm]
    limit: int | None
    rows: Rows
    include: Path | None = None
    on_skip: Callable[[str, str], None] = lambda name, reason: None
    skipped: list[dict[str, str]] = field(default_factory=list)

    def missing(self) -> list[tuple[Benchmark, list[Arm]]]:
        """What is to be measured, the same in every process; benchmarks whose judge has no key are skipped."""
        wanted = []
        for benchmark in self.benchmarks:
            arms = [arm for arm in self.arms if self._find(benchmark, arm) is None]
            variable = missing_key() if benchmark.judge else None
            if arms and variable:
                self._skip(benchmark, f"a judge model reads {benchmark.judge}; set {variable}")
            elif arms:
                wanted.append((benchmark, arms))
        [wanted] = broadcast_object_list([wanted])
        return wanted

    def measure(
        self,
        wanted: Sequence[tuple[Benchmark, list[Arm]]],
        loaded: LoadedModel,
        image_options: dict[str, Any],
        on_batch: Callable[[Benchmark, Arm, int], None] = lambda benchmark, arm, questions: None,
    ) -> None:
        """Measure what is missing. A benchmark whose data cannot be had is skipped; any other error ends the run.

        Args:
            image_options: of the image processor, instead of its own.
            on_batch: told how many questions a finished batch of this process had.
        """
        main = processes().is_main_process
        for benchmark, arms in wanted:
            include = self.include if benchmark.local else None
            try:
                harness.check(benchmark, include)
            except harness.Unavailable as error:
                self._skip(benchmark, f"its data cannot be loaded: {error}")
                continue
            for arm in arms:
                outcome = harness.run(
                    benchmark,
                    loaded,
                    arm.pruner,
                    image_options,
                    self.limit,
                    self.rows.folder,
                    include,
                    partial(on_batch, benchmark, arm),
                )
                if main:
                    assert outcome is not None
                    self.rows.add(row_of(benchmark, arm, outcome), self.about["identity"], outcome.answers)
                    self.publish()

    def document(self) -> dict[str, Any]:
        """What --json prints: the rows that were asked for, as far as they are finished."""
        found = [self._find(benchmark, arm) for benchmark in self.benchmarks for arm in self.arms]
        rows = table.finish([row for row in found if row is not None])
        return {**self.about, "rows": rows, "means": table.means(rows), "skipped": self.skipped}

    def publish(self) -> None:
        """Write the document and the table."""
        document = self.document()
        self.rows.publish(document, table.markdown(document))

    def _find(self, benchmark: Benchmark, arm: Arm) -> dict[str, Any] | None:
        return self.rows.find({"benchmark": benchmark.name, **arm.row}, self.about["identity"])

    def _skip(self, benchmark: Benchmark, reason: str) -> None:
        self.skipped.append({"benchmark": benchmark.name, "reason": reason})
        if processes().is_main_process:
            self.on_skip(benchmark.name, reason)


def row_of(benchmark: Benchmark, arm: Arm, outcome: harness.Outcome) -> dict[str, Any]:
    """A finished row: the score, and means a question."""
    tally = outcome.tally
    return {
        "benchmark": benchmark.name,
        **arm.row,
        "score": round(outcome.score, 4),
        "questions": tally.questions,
        "tokens": round(tally.visual_tokens / tally.questions, 2),
        "kept_tokens": round(tally.kept_tokens / tally.questions, 2),
        "seconds": round(tally.seconds / tally.questions, 5),
    }
