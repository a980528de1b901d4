"""The suites: what is in them, and how a score is read. Needs no lmms-eval."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ptprune.lmms.suites import LOCAL, PAPER, PTP13, SUITES, Benchmark, missing_key

DOCUMENT = Path(__file__).parents[2] / "docs/evaluating.md"


def test_the_thirteen() -> None:
    assert len(PTP13) == 13
    assert [benchmark.name for benchmark in PTP13 if benchmark.filling] == ["ScienceQA", "ChartQA"]
    assert [benchmark.name for benchmark in PTP13 if benchmark.judge] == ["MM-Vet"]
    assert set(PAPER) < {benchmark.name for benchmark in PTP13 if not benchmark.filling}
    for suite in SUITES.values():
        names = [benchmark.name.lower() for benchmark in suite]
        assert len(set(names)) == len(names)
    assert all(benchmark.local for benchmark in LOCAL)


def test_the_document_lists_every_benchmark() -> None:
    text = DOCUMENT.read_text()
    for suite, benchmarks in SUITES.items():
        for benchmark in benchmarks:
            assert re.search(rf"^\| {re.escape(benchmark.name)} \| `{benchmark.task}` \|", text, re.MULTILINE), suite
    for name, score in PAPER.items():
        assert re.search(rf"^\| {name} \|.* {score:g} \|$", text, re.MULTILINE), name


def test_scores() -> None:
    results = {"a,none": 0.5, "b,none": 0.25, "c,none": "N/A"}
    assert Benchmark("x", "x", ("a,none",)).score(results) == 50
    assert Benchmark("x", "x", ("a,none", "b,none"), scale=1).score(results) == 0.75
    for missing in ("d,none", "c,none"):
        with pytest.raises(RuntimeError, match=missing):
            Benchmark("x", "x", ("a,none", missing)).score(results)


def test_a_limit_does_not_part_what_belongs_together() -> None:
    alone, pairs = Benchmark("x", "x", ()), Benchmark("x", "x", (), together=2)
    assert [alone.limited(n) for n in (None, 1, 7)] == [None, 1, 7]
    assert [pairs.limited(n) for n in (None, 1, 2, 7)] == [None, 2, 2, 8]


def test_the_judges_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("API_TYPE", "OPENAI_API_KEY", "AZURE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    assert missing_key() == "OPENAI_API_KEY"
    monkeypatch.setenv("API_TYPE", "azure")
    assert missing_key() == "AZURE_API_KEY"
    monkeypatch.setenv("AZURE_API_KEY", "k")
    assert missing_key() is None
