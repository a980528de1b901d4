"""lmms-eval's command, ``ptprune eval`` in one process and in two, and ``ptprune bench accuracy``: the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.command import Command

from integration.lmms.conftest import COUNT, answers, right, samples, start

ARMS = (("none", 1.0), ("ptp", 0.25), ("random", 0.25))
SETS = ("scenes", "easy-vqa")


@pytest.fixture
def benched(ptprune: Command, items: Path) -> dict[str, dict[str, Any]]:
    """Rows of ``ptprune bench accuracy`` by set and method."""
    options = ("--methods", "ptp,random", "--ratios", ".25", "--json")
    found = {}
    for name in SETS:
        rows = ptprune("bench", "accuracy", "--items", items / name, *options).document["results"]
        found[name] = {row["method"]: row for row in rows}
    return found


def test_the_same_answers_by_every_way(ptprune: Command, items: Path, benched: Any, tmp_path: Path) -> None:
    options = ("--suite", "local", "--limit", COUNT, "--keep-ratio", "1,.25", "--methods", "ptp,random", "--json")
    document = ptprune("eval", *options, "--out", tmp_path / "one", "--batch", 5).document
    two = start("ptprune", "eval", *options, "--out", tmp_path / "two", processes=2)
    rows = {(row["benchmark"], row["method"]): row for row in document["rows"]}
    shared = {(row["benchmark"], row["method"]): row for row in two.document["rows"]}
    assert list(rows) == list(shared) == [(name, method) for name in SETS for method, _ in ARMS]
    for name in SETS:
        for method, ratio in ARMS:
            expected = benched[name][method]
            alone = answers(tmp_path / "one", name, method, ratio)
            assert [answer["doc_id"] for answer in alone] == list(range(COUNT))
            assert right(alone) == expected["right"]
            assert answers(tmp_path / "two", name, method, ratio) == alone  # every question once, answered the same
            for row in (rows[name, method], shared[name, method]):
                assert row["questions"] == COUNT
                assert row["score"] == pytest.approx(expected["accuracy"], abs=0.01)
                assert row["kept_tokens"] == pytest.approx(expected["kept_tokens"], abs=0.01)
        assert rows[name, "none"]["tokens"] == rows[name, "none"]["kept_tokens"] == rows[name, "ptp"]["tokens"]
        marks = {method: expected["right"] for method, expected in benched[name].items()}
        assert "1" in marks["none"]
        assert marks["ptp"] != marks["random"] or name == "easy-vqa"  # the arms can be told apart

    given = ("keep_ratio=0.25,method=random", "ptprune_scenes,ptprune_easy_vqa")
    plain = start(
        *("lmms_eval", "--model", "ptprune", "--model_args", given[0], "--tasks", given[1], "--batch_size", 7),
        *("--include_path", items, "--output_path", tmp_path / "plain", "--log_samples"),
    )
    assert plain.code == 0, plain.err
    for name, logged in zip(SETS, (samples(tmp_path / "plain")[task] for task in given[1].split(",")), strict=True):
        assert "".join("01"[round(sample["accuracy"])] for sample in logged) == benched[name]["random"]["right"]
    [results] = (tmp_path / "plain").rglob("*_results.json")
    told = json.loads(results.read_text())["results"]["ptprune_scenes"]["accuracy,none"]
    assert told == pytest.approx(benched["scenes"]["random"]["accuracy"] / 100, abs=1e-4)


def test_two_processes_of_lmms_evals_own_command(items: Path, benched: Any, tmp_path: Path) -> None:
    """23 questions on two processes: one of them is given one more, which lmms-eval asks for only to keep step."""
    options = ("--include_path", items, "--tasks", "ptprune_scenes", "--limit", COUNT - 1, "--batch_size", 4)
    result = start(
        *("lmms_eval", "--model", "ptprune", "--model_args", "keep_ratio=0.25", *options),
        *("--output_path", tmp_path, "--log_samples"),
        processes=2,
    )
    assert result.code == 0, result.err
    logged = sorted(samples(tmp_path)["ptprune_scenes"], key=lambda sample: sample["doc_id"])
    assert [sample["doc_id"] for sample in logged] == list(range(COUNT - 1))
    marks = "".join("01"[round(sample["accuracy"])] for sample in logged)
    assert marks == benched["scenes"]["ptp"]["right"][:-1]
    counted = [line for line in result.out.splitlines() if "visual tokens kept" in line]
    assert sorted(line.split("ptprune: ")[1].split()[0] for line in counted) == ["11", "12"]


def test_scenes_are_those_of_bench_accuracy(ptprune: Command, benched: Any) -> None:
    quick = ("--methods", "random", "--ratios", ".25", "--questions", COUNT, "--json")
    rows = {row["method"]: row for row in ptprune("bench", "accuracy", *quick).document["results"]}
    for method in ("none", "random"):
        assert rows[method]["right"] == benched["scenes"][method]["right"]
        assert rows[method]["kept_tokens"] == benched["scenes"][method]["kept_tokens"]
