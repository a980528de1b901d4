"""Files of results: what is written is read back, and what is not as its kind says is refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ptprune.errors import UserError
from ptprune.results.file import as_json, read, resume, run_of, save
from ptprune.results.rows import KINDS, VERSION, AccuracyResults, Results, SuiteResults

HERE = Path(__file__).parents[2] / "benchmarks"
WRITTEN = [*sorted((HERE / "results").glob("*.json")), HERE / "published.json"]

RUN = {"machine": "Abacus 3000", "versions": {"torch": "2.13.0"}, "identity": {"model": "a", "limit": None}}
ACCURACY: dict[str, Any] = {
    "kind": "accuracy",
    "version": VERSION,
    "runs": [RUN],
    "model": "m",
    "items": 2,
    "split": None,
    "results": [
        {
            "run": 0,
            "method": "ptp",
            "keep_ratio": 0.5,
            "settings": {"alpha": 0.5},
            "variants": [],
            "kept_tokens": 5.0,
            "right": "01",
            "accuracy": 50.0,
            "low": 0.0,
            "high": 100.0,
            "retention": None,
            "by_kind": {"digits": 50.0},
            "vs_ptp": {"difference": 1.0, "low": 0.0, "high": 2.0},
        }
    ],
}
SUITE: dict[str, Any] = {
    "kind": "suite",
    "version": VERSION,
    "runs": [RUN],
    "model": "m",
    "suite": "local",
    "limit": 3,
    "rows": [
        {
            "run": 0,
            "method": "ptp",
            "keep_ratio": 0.5,
            "settings": {},
            "benchmark": "V*",
            "score": 50.0,
            "questions": 2,
            "tokens": 10.0,
            "kept_tokens": 5.0,
            "seconds": 1.0,
            "retention": None,
        }
    ],
    "means": [],
    "skipped": [{"benchmark": "MME", "reason": "no data"}],
    "expected": {"about": "a paper", "scores": {"MME": 2220}},
}


def changed(document: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy with one value replaced; ``...`` takes it out."""
    copy: Any = json.loads(json.dumps(document))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return copy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def refusal(path: Path, document: Any) -> str:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(UserError) as error:
        read(path)
    told = str(error.value)
    assert told.startswith(f"{path}: ")
    assert "\n" not in told
    return told


@pytest.mark.parametrize("written", WRITTEN, ids=lambda path: path.name)
def test_files_of_this_repository_survive_a_round_trip(written: Path, path: Path) -> None:
    results = read(written)
    save(path, results)
    assert read(path) == results
    assert json.loads(path.read_text()) == {"runs": [], **json.loads(written.read_text())}


@pytest.mark.parametrize("document", [ACCURACY, SUITE], ids=lambda document: document["kind"])
def test_rows_survive_a_round_trip(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document))
    results = read(path)
    assert as_json(results) == document
    assert list(as_json(results))[:2] == ["kind", "version"]
    save(path, results)
    assert json.loads(path.read_text()) == document


def test_every_kind_is_tested() -> None:
    assert {read(path).kind for path in WRITTEN} | {"suite", "overhead"} == set(KINDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (changed(ACCURACY, "colour", to="red"), "colour"),
        (changed(ACCURACY, "results", 0, "colour", to="red"), "results.0.colour"),
        (changed(ACCURACY, "results", 0, "accuracy", to=...), "results.0.accuracy"),
        (changed(ACCURACY, "results", 0, "low", to="75"), "results.0.low"),
        (changed(ACCURACY, "results", 0, "low", to=True), "results.0.low"),
        (changed(ACCURACY, "results", 0, "low", to=float("nan")), "results.0.low"),
        (changed(ACCURACY, "results", 0, "by_kind", "digits", to=None), "results.0.by_kind.digits"),
        (changed(ACCURACY, "results", 0, "right", to="0"), "results.0.right"),
        (changed(ACCURACY, "results", 0, "right", to="02"), "results.0.right"),
        (changed(ACCURACY, "results", 0, "run", to=1), "results.0.run"),
        (changed(ACCURACY, "results", to={}), "results"),
        (changed(ACCURACY, "items", to=0), "items"),
        (changed(ACCURACY, "items", to=2.5), "items"),
        (changed(ACCURACY, "runs", 0, "machine", to=...), "runs.0.machine"),
        (changed(SUITE, "rows", 0, "benchmark", to=1), "rows.0.benchmark"),
        (changed(SUITE, "rows", 0, "run", to=-1), "rows.0.run"),
        (changed(SUITE, "limit", to="3"), "limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_names_the_place(document: dict[str, Any], place: str, path: Path) -> None:
    told = refusal(path, document)
    assert f"{path}: {place}" in told
    assert KINDS[document["kind"]].WRITTEN_BY in told  # which command writes a right one


def test_speed_and_papers_are_whole(path: Path) -> None:
    speed = json.loads((HERE / "results" / "speed-internvl3-1b-cpu.json").read_text())
    published = json.loads((HERE / "published.json").read_text())
    for document, place in [
        (changed(speed, "rows", 0, "arm", to="pruned"), "unpruned"),
        (changed(speed, "rows", 0, "ttft_s", "median", to=...), "rows.0.ttft_s.median"),
        (changed(speed, "ratios", to={}), "ratios"),
        (changed(speed, "tokens", "after", to={}), "tokens.after"),
        (changed(published, "tables", 0, "rows", 0, "source", to=" "), "tables.0.rows.0.source"),
        (changed(published, "tables", 0, "rows", 0, "values", to=[]), "tables.0"),
    ]:
        assert place in refusal(path, document)


@pytest.mark.parametrize("text", ["", "[]", "{}", '"accuracy"', '{"kind": 5}', '{"kind": "guess", "version": 1}', "["])
def test_no_file_of_results(text: str, path: Path) -> None:
    refusal(path, text)


def test_an_unknown_kind_lists_the_known_ones(path: Path) -> None:
    told = refusal(path, {"kind": "guess", "version": VERSION})
    assert all(kind in told for kind in KINDS)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_of_the_format_is_refused(version: Any, path: Path) -> None:
    told = refusal(path, {**ACCURACY, "version": version})
    assert f"{path}: version: " in told
    assert str(version) in told
    assert "version" in refusal(path, changed(ACCURACY, "version", to=...))


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", "binary.json", "."):
        with pytest.raises(UserError, match=str(tmp_path / name)):
            read(tmp_path / name)


def test_only_its_own_kind_is_gone_on_from(path: Path) -> None:
    assert resume(path, AccuracyResults) is None
    path.write_text(json.dumps(ACCURACY))
    assert resume(path, AccuracyResults) == read(path)
    with pytest.raises(UserError, match=str(path)):
        resume(path, SuiteResults)
    with pytest.raises(UserError, match="nowhere"):
        resume(path.parent / "nowhere" / "a.json", AccuracyResults)


def test_a_file_is_written_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(model: str) -> Results:
        return AccuracyResults(model=model, items=1, split=None)

    save(path, of("first"))
    with path.open() as reader:
        save(path, of("second"))
        assert json.load(reader)["model"] == "first"

    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        with self.open("w") as file:
            file.write("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        save(path, of("third"))
    monkeypatch.undo()
    assert json.loads(path.read_text())["model"] == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_module_that_is_installed_under_another_name_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("abacus_engine")
    module.__version__ = "3.1"  # type: ignore[attr-defined]
    assert run_of({}, "cpu", "abacus_engine").versions["abacus_engine"] == "not installed"
    monkeypatch.setitem(sys.modules, "abacus_engine", module)
    assert run_of({}, "cpu", "abacus_engine").versions["abacus_engine"] == "3.1"
