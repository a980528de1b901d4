"""The suites: their benchmarks, the tasks of lmms-eval behind them, and the number that is the score."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ptprune.errors import SettingError

KEYS = {"openai": "OPENAI_API_KEY", "azure": "AZURE_API_KEY"}
"""``API_TYPE`` -> environment variable from which lmms-eval reads the judge model's key."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    name: str  # in tables and for ``--benchmarks``
    task: str  # of lmms-eval
    metrics: tuple[str, ...]  # keys of lmms-eval's results, added up
    scale: float = 100  # what the sum is multiplied by, so that scores read as they do in papers
    judge: str = ""  # what a judge model is needed for; empty where none is
    together: int = 1  # questions that are scored together; a limit is rounded up to a multiple of it
    filling: bool = False  # whether we chose it because the paper's list is not known to its end
    local: str = ""  # name of the set of items (``ptprune items``) that it is made of; no network is needed

    def score(self, results: Mapping[str, float]) -> float:
        """From lmms-eval's results of the task.

        Raises:
            RuntimeError: where they do not hold a metric, as another version of lmms-eval may name them otherwise.
        """
        for metric in self.metrics:
            if not isinstance(results.get(metric), int | float):
                raise RuntimeError(f"lmms-eval gave no {metric!r} for task {self.task}, but {', '.join(results)}")
        return self.scale * sum(results[metric] for metric in self.metrics)

    def limited(self, limit: int | None) -> int | None:
        """A limit that does not part questions which are scored together."""
        return None if limit is None else -(-limit // self.together) * self.together


EXACT = ("exact_match,none",)

PTP13 = (
    Benchmark("VizWiz", "vizwiz_vqa_val", EXACT),
    Benchmark("POPE", "pope", ("pope_f1_score,none",)),
    Benchmark("GQA", "gqa", EXACT),
    Benchmark("AI2D", "ai2d", ("exact_match,flexible-extract",)),
    Benchmark("MM-Vet", "mmvet", ("gpt_eval_score,none",), scale=1, judge="every answer"),
    Benchmark("SEED-Bench", "seedbench", ("seed_image,none",)),
    Benchmark("MME", "mme", ("mme_perception_score,none", "mme_cognition_score,none"), scale=1, together=2),
    Benchmark("MMBench", "mmbench_en_dev_static", ("gpt_eval_score,none",), scale=1),
    Benchmark("MMStar", "mmstar", ("average,none",)),
    Benchmark("RealWorldQA", "realworldqa", EXACT),
    Benchmark("TextVQA", "textvqa_val", EXACT),
    Benchmark("ScienceQA", "scienceqa_img", EXACT, filling=True),
    Benchmark("ChartQA", "chartqa", ("relaxed_overall,none",), filling=True),
)
UNREADABLE = "answers that its rules cannot read"
HIRES = (
    Benchmark("DocVQA", "docvqa_val", ("anls,none",)),
    Benchmark("InfoVQA", "infovqa_val", ("anls,none",)),
    Benchmark("ChartQA", "chartqa", ("relaxed_overall,none",)),
    Benchmark("OCRBench", "ocrbench", ("ocrbench_accuracy,none",), scale=1000),
    Benchmark("V*", "vstar_bench", ("vstar_overall_acc,none",), scale=1),
    Benchmark("HRBench-4K", "hrbench4k", ("average,none",), judge=UNREADABLE),
    Benchmark("HRBench-8K", "hrbench8k", ("average,none",), judge=UNREADABLE),
)
LOCAL = (
    Benchmark("scenes", "ptprune_scenes", ("accuracy,none",), local="scenes"),
    Benchmark("easy-vqa", "ptprune_easy_vqa", ("accuracy,none",), local="easy-vqa"),
)
WORLDS = tuple(
    Benchmark(name, f"ptprune_{name}", ("accuracy,none",), local=name)
    for name in ("sparse", "crowded", "documents", "captions")
)
SUITES = {"ptp13": PTP13, "hires": HIRES, "local": LOCAL, "worlds": WORLDS}

PAPER = {"POPE": 87.2, "GQA": 63.1, "AI2D": 83.8, "SEED-Bench": 75.1, "MME": 2220}
PAPER |= {"MMBench": 81.5, "MMStar": 61.4, "RealWorldQA": 65.3, "VizWiz": 33.1}
"""Scores that the paper lists for PTP. For which model is not stated; they fit InternVL2-8B. No others are known."""


def missing_key() -> str | None:
    """The environment variable that a judge model needs and that is not set."""
    wanted = KEYS.get(os.environ.get("API_TYPE", "openai"))
    return wanted if wanted is not None and not os.environ.get(wanted) else None


def choose(suite: str, names: str | None) -> list[Benchmark]:
    """The benchmarks of a suite, or some of them.

    Args:
        names: with commas between, in any case; None for all.

    Raises:
        SettingError: for a suite or a benchmark that is not known.
    """
    if suite not in SUITES:
        raise SettingError(f"suite {suite}: unknown; give one of {', '.join(SUITES)}")
    known = {benchmark.name.lower(): benchmark for benchmark in SUITES[suite]}
    wanted = list(known) if names is None else [name.strip().lower() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            told = ", ".join(benchmark.name for benchmark in known.values())
            raise SettingError(
                f"benchmarks {names}: {name or 'nothing'!r} is not in suite {suite}; give some of {told}"
            )
    return [known[name] for name in dict.fromkeys(wanted)]
