"""lmms-eval's own tasks: those of the suites are there, and a right answer to every question is a full score."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lmms_eval import utils
from lmms_eval.api.metrics import mean
from lmms_eval.tasks import TaskManager

from ptprune.lmms.suites import HIRES, PTP13, Benchmark

STOCK = list({benchmark.task: benchmark for benchmark in (*PTP13, *HIRES)}.values())


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager("ERROR", model_name="ptprune")


def config_of(benchmark: Benchmark, manager: TaskManager) -> dict[str, Any]:
    return utils.load_yaml_config(manager.task_index[benchmark.task]["yaml_path"])


@pytest.mark.parametrize("benchmark", STOCK, ids=lambda benchmark: benchmark.task)
def test_tasks_have_the_metrics(benchmark: Benchmark, manager: TaskManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "nobody is asked")  # MM-Vet's task cannot even be read without
    config = config_of(benchmark, manager)
    filters = [entry["name"] for entry in config.get("filter_list", [{"name": "none"}])]
    known = [f"{metric['metric']},{name}" for metric in config["metric_list"] for name in filters]
    assert set(benchmark.metrics) <= set(known)
    assert config["output_type"] == "generate_until"
    assert all(metric["higher_is_better"] for metric in config["metric_list"])


TEN = ["cat"] * 10
PAIR = [
    {"question_id": "a.png", "category": "existence", "question": "?", "answer": answer} for answer in ("Yes", "No")
]
COGNITION = [{**question, "category": "code_reasoning"} for question in PAIR]
CHOICES = {
    "question": "?",
    "A": "cat",
    "B": "dog",
    "C": "cow",
    "D": "hen",
    "hint": "nan",
    "split": "dev",
    "source": "x",
}
# task -> questions, right answers, wrong answers, full score
ASKED: dict[str, tuple[list[dict[str, Any]], list[str], list[str], float]] = {
    "mme": (PAIR + COGNITION, ["Yes", "No"] * 2, ["No", "Yes"] * 2, 400),
    "pope": (
        [{"question_id": str(n), "answer": "yes", "question": "?", "category": "x"} for n in range(2)],
        ["Yes", "yes"],
        ["No", "no"],
        100,
    ),
    "vizwiz_vqa_val": ([{"question_id": "1", "answers": TEN, "category": "x"}], ["cat"], ["dog"], 100),
    "textvqa_val": ([{"question_id": 1, "answers": TEN}], ["cat"], ["dog"], 100),
    "seedbench": ([{"answer": "B", "data_type": "image", "question_id": 1}], ["B"], ["C"], 100),
    "mmstar": (
        [{"answer": "B", "category": "math", "l2_category": "geometry", "index": 1, "question": "?"}],
        ["B"],
        ["C"],
        100,
    ),
    "realworldqa": ([{"answer": "left", "question": "?"}], ["Left"], ["right"], 100),
    "scienceqa_img": ([{"answer": 1, "choices": ["cat", "dog"]}], ["B"], ["A"], 100),
    "chartqa": ([{"answer": "14", "type": "human_test"}], ["14.2"], ["18"], 100),
    "ocrbench": (
        [{"answer": ["cat"], "dataset": "x", "question_type": "Scene Text-centric VQA", "question": "?"}],
        ["a cat"],
        ["a dog"],
        1,
    ),
    "vstar_bench": ([{"label": "B", "category": "x", "question_id": 1, "text": "?"}], ["B"], ["C"], 100),
    "mmbench_en_dev_static": (
        [{**CHOICES, "answer": "B", "category": "x", "L2-category": "y", "index": 1}],
        ["B"],
        ["C"],
        100,
    ),
    "hrbench4k": (
        [{**CHOICES, "answer": "B", "category": "single", "cycle_category": "0", "index": 1}],
        ["B"],
        ["C"],
        100,
    ),
}


@pytest.mark.parametrize("task", list(ASKED))
def test_right_answers_are_a_full_score(
    task: str, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some tasks write files wherever they are
    benchmark = next(benchmark for benchmark in STOCK if benchmark.task == task)
    questions, right, wrong, full = ASKED[task]
    for given, expected in ((right, full), (wrong, 0), (right, full)):  # again: nothing adds up over runs
        config = config_of(benchmark, manager)
        results: dict[str, list[Any]] = {}
        for question, answer in zip(questions, given, strict=True):
            for name, value in config["process_results"](question, [answer]).items():
                results.setdefault(name, []).append(value)
        scores: Mapping[str, float] = {
            f"{metric['metric']},none": aggregate(metric["aggregation"], results[metric["metric"]], tmp_path)
            for metric in config["metric_list"]
            if metric["metric"] in results
        }
        assert benchmark.score(scores) == pytest.approx(expected)


def aggregate(how: Any, values: list[Any], folder: Path) -> Any:
    if how == "mean":
        return mean(values)
    given = {"args": argparse.Namespace(output_path=str(folder))} if "args" in how.__code__.co_varnames[:2] else {}
    return how(values, **given)
