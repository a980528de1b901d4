"""Runs a suite with several candidates: measures the missing rows in order, and publishes results after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ptprune.asking.loaded import LoadedModel
from ptprune.bench.candidates import NO_PRUNING, Candidate, key
from ptprune.files import make_folder
from ptprune.lmms import harness, table
from ptprune.lmms.processes import processes
from ptprune.lmms.suites import PAPER, Benchmark, missing_key
from ptprune.results.file import go_on, save, write
from ptprune.results.rows import Run, SuiteResults, SuiteRow

RESULTS, TABLE, ANSWERS = "results.json", "results.md", "answers"
EXPECTED = "as the paper lists its method; for which model is not known, the scores fit InternVL2-8B"


def compare(methods: Sequence[str], ratios: Sequence[float], given: Mapping[str, dict[str, Any]]) -> list[Candidate]:
    """The candidates; at keep ratio 1 all methods are the unpruned model. ``given``: method -> settings."""
    return [
        Candidate(method, ratio, given.get(method, {}))
        for ratio in ratios
        for method in (methods if ratio < 1 else [NO_PRUNING])
    ]


def expected(benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """The paper's listed scores of these benchmarks, and a note on them."""
    names = [benchmark.name for benchmark in benchmarks]
    return {"about": EXPECTED, "scores": {name: score for name, score in PAPER.items() if name in names}}


@dataclass
class Comparison:
    """A run of a suite. Its folder keeps the rows of all runs, also of other models and options.

    Raises:
        UserError: where the folder cannot be written, or holds a file that is not ours.
    """

    results: SuiteResults  # the file as it will be, without rows; its last run is this one
    benchmarks: Sequence[Benchmark]
    candidates: Sequence[Candidate]
    folder: Path  # of the results; made if it is missing
    include: Path | None = None  # folder of local tasks
    on_skip: Callable[[str, str], None] = lambda name, reason: None  # in the main process, with the reason
    _rows: dict[str, SuiteRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_folder(self.folder, f"--out {self.folder}")
        make_folder(self.folder / ANSWERS, f"--out {self.folder}: {ANSWERS}")
        [self._run] = self.results.runs
        if (earlier := go_on(self.folder / RESULTS, self.results)) is not None:
            for row in earlier.rows:  # of two alike the first counts
                self._rows.setdefault(_name(earlier.runs[row.run], row.benchmark, key(row)), row)

    def missing(self) -> list[tuple[Benchmark, list[Candidate]]]:
        """Candidates to measure, the same in every process. Skips benchmarks whose judge has no key."""
        wanted = []
        for benchmark in self.benchmarks:
            candidates = [one for one in self.candidates if self._name(benchmark, one) not in self._rows]
            variable = missing_key() if benchmark.judge else None
            if candidates and variable:
                self._skip(benchmark, f"a judge model reads {benchmark.judge}; set {variable}")
            elif candidates:
                wanted.append((benchmark, candidates))
        [wanted] = broadcast_object_list([wanted])
        return wanted

    def measure(
        self,
        wanted: Sequence[tuple[Benchmark, list[Candidate]]],
        loaded: LoadedModel,
        on_batch: Callable[[str, int], None] = lambda what, questions: None,
    ) -> None:
        """Measure what is missing. Skips a benchmark whose data cannot be loaded; any other error ends the run.

        Args:
            on_batch: called with what is measured, and how many questions a finished batch of this process had.
        """
        main, limit = processes().is_main_process, self.results.limit
        for benchmark, candidates in wanted:
            include = self.include if benchmark.local else None
            try:
                harness.check(benchmark, include)
            except harness.Unavailable as error:
                self._skip(benchmark, f"its data cannot be loaded: {error}")
                continue
            for one in candidates:
                told = partial(on_batch, f"{benchmark.name}, {one.method} {one.keep_ratio:g}")
                outcome = harness.run(benchmark, loaded, one.pruner, limit, self.folder, include, told)
                if main:
                    assert outcome is not None
                    self._rows[self._name(benchmark, one)] = self._row(benchmark, one, outcome)
                    name = f"{benchmark.name}-{one.method}-{one.keep_ratio:g}.jsonl".replace("*", "star")
                    answers = "".join(json.dumps(answer, default=str) + "\n" for answer in outcome.answers)
                    write(self.folder / ANSWERS / name, answers)
                    self.publish()

    def document(self) -> SuiteResults:
        """The rows that were asked for, as far as they are finished."""
        rows = table.finish([self._rows[name] for name in self._asked if name in self._rows])
        return self.results.model_copy(update={"rows": rows, "means": table.means(rows)})

    def publish(self) -> None:
        """Write the results and the table."""
        asked, names = self.document(), set(self._asked)
        others = [row for name, row in self._rows.items() if name not in names]
        save(self.folder / RESULTS, asked.model_copy(update={"rows": asked.rows + others}))
        write(self.folder / TABLE, table.page(asked))

    @property
    def _asked(self) -> list[str]:
        return [self._name(benchmark, one) for benchmark in self.benchmarks for one in self.candidates]

    def _name(self, benchmark: Benchmark, one: Candidate) -> str:
        return _name(self._run, benchmark.name, one.key)

    def _row(self, benchmark: Benchmark, one: Candidate, outcome: harness.Outcome) -> SuiteRow:
        """A finished row: the score, and means a question."""
        tally, questions = outcome.tally, outcome.tally.questions
        return SuiteRow(
            **one.of_row(self.results.runs.index(self._run)),
            benchmark=benchmark.name,
            score=round(outcome.score, 4),
            questions=questions,
            tokens=round(tally.visual_tokens / questions, 2),
            kept_tokens=round(tally.kept_tokens / questions, 2),
            seconds=round(tally.seconds / questions, 5),
        )

    def _skip(self, benchmark: Benchmark, reason: str) -> None:
        self.results.skipped.append({"benchmark": benchmark.name, "reason": reason})
        if processes().is_main_process:
            self.on_skip(benchmark.name, reason)


def _name(run: Run, benchmark: str, candidate: str) -> str:
    """The same for rows that measure the same."""
    return json.dumps([run.identity, benchmark, candidate], sort_keys=True)
