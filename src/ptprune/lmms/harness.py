"""One benchmark with one arm through lmms-eval, in this process, or in each of several."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from ptprune.asking.loaded import LoadedModel
from ptprune.errors import first_line
from ptprune.lmms.processes import processes
from ptprune.lmms.respondent import Respondent, Tally
from ptprune.lmms.suites import Benchmark
from ptprune.pruner import TokenPruner

REASONING = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'  # what lmms-eval's own command cuts from answers


class Unavailable(Exception):
    """A benchmark whose data cannot be had. The message says why in one line."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run, on the main process."""

    score: float  # the benchmark's
    tally: Tally  # over all processes
    answers: list[dict[str, Any]]  # of all questions, ``{"doc_id", "target", "answer"}``, by ``doc_id``


def check(benchmark: Benchmark, include: Path | None) -> None:
    """Load a benchmark's data, first in the main process, which may download it, then in the others.

    Args:
        include: folder of local tasks; None for those of lmms-eval.

    Raises:
        Unavailable: in every process, where that cannot be done in the main one.
    """
    state = processes()
    reason = _load(benchmark, include) if state.is_main_process else None
    [reason] = broadcast_object_list([reason])
    if reason is None and not state.is_main_process:
        reason = _load(benchmark, include)
    if any(gather_object([reason])):
        raise Unavailable(reason or "another process could not load its data")


def _load(benchmark: Benchmark, include: Path | None) -> str | None:
    """The reason why a benchmark's data cannot be loaded; None where it can."""
    from lmms_eval.tasks import get_task_dict

    try:
        get_task_dict([benchmark.task], _tasks(include), "chat")
    except Exception as error:  # a hub, a cache, a format: whatever is between us and the data
        attempt = getattr(error, "last_attempt", None)  # lmms-eval tries several times and raises that it did
        return first_line(attempt.exception() if attempt else error)
    return None


@cache
def _tasks(include: Path | None) -> Any:
    """lmms-eval's list of tasks, which takes seconds to make, or of local tasks alone. Loading one reads its functions
    anew, as it must: those of some add up results in variables of their module."""
    from lmms_eval.tasks import TaskManager

    if include is None:
        return TaskManager("ERROR", model_name="ptprune")
    return TaskManager("ERROR", include_path=str(include), include_defaults=False, model_name="ptprune")


def run(
    benchmark: Benchmark,
    loaded: LoadedModel,
    pruner: TokenPruner | None,
    limit: int | None,
    folder: Path,
    include: Path | None,
    on_batch: Callable[[int], None],
) -> Outcome | None:
    """Answer a benchmark's questions and score the answers.

    Args:
        limit: only so many questions.
        folder: tasks may write files of their own there.
        include: folder of local tasks; None for those of lmms-eval.
        on_batch: told how many questions a finished batch of this process had.

    Returns:
        None in all processes but the main one.

    Raises:
        RuntimeError: where not every question was answered exactly once. All errors of the model come through.
    """
    from lmms_eval.evaluator import simple_evaluate

    respondent = Respondent(loaded, pruner, on_batch)
    results: Any = simple_evaluate(
        model=respondent,
        tasks=[benchmark.task],
        task_manager=_tasks(include),
        limit=benchmark.limited(limit),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
        distributed_executor_backend="torchrun" if processes().use_distributed else "accelerate",
        cli_args=argparse.Namespace(
            output_path=str(folder), process_with_media=False, reasoning_tags=REASONING, agentic_trace_mode="basic"
        ),
    )
    tally = sum(gather_object([respondent.tally]), Tally())
    if not processes().is_main_process:
        return None
    samples = results["samples"][benchmark.task]
    answers = [
        {"doc_id": sample["doc_id"], "target": sample["target"], "answer": sample["filtered_resps"][0]}
        for sample in sorted(samples, key=lambda sample: sample["doc_id"])
    ]
    if not len({answer["doc_id"] for answer in answers}) == len(answers) == tally.questions:
        found = f"{tally.questions} questions answered and {len(answers)} answers scored"
        raise RuntimeError(f"{benchmark.name}: {found}; each has to be once")
    return Outcome(benchmark.score(results["results"][benchmark.task]), tally, answers)
