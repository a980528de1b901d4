"""``ptprune eval`` and ``ptprune items``: resuming, skipping, failing, and what stands in the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.command import Command, refused

from integration.lmms.conftest import answers
from ptprune.asking.loaded import LoadedModel
from ptprune.bench.items import easyvqa
from ptprune.checkpoints import Checkpoint
from ptprune.lmms import suites
from ptprune.lmms.suites import LOCAL, PTP13

QUICK = ("--suite", "local", "--limit", "3")
ROW = ["benchmark", "method", "keep_ratio", "settings", "score", "questions", "tokens", "kept_tokens", "seconds"]


def test_the_document_and_the_files(ptprune: Command, tmp_path: Path) -> None:
    result = ptprune("eval", *QUICK, "--out", tmp_path, "--json", "--set", "alpha=0.25")
    document = result.document
    assert result.err == ""
    assert (document["kind"], document["version"]) == ("suite", 1)
    [run] = document["runs"]
    assert {"torch", "transformers", "lmms-eval", "ptprune"} <= set(run["versions"])
    assert (run["identity"]["limit"], run["identity"]["lmms-eval"]) == (3, run["versions"]["lmms-eval"])
    assert (document["model"], document["suite"], document["limit"]) == ("ptprune-tiny", "local", 3)
    assert [{*ROW, "retention", "run"} == set(row) for row in document["rows"]] == [True] * 4
    assert [row["settings"].get("alpha") for row in document["rows"]] == [None, 0.25] * 2
    assert [mean["method"] for mean in document["means"]] == ["none", "ptp"]
    assert json.loads((tmp_path / "results.json").read_text()) == document
    table = (tmp_path / "results.md").read_text().splitlines()
    assert all(told in table[0] for told in ("ptprune-tiny", "local", "first 3 questions"))
    assert [line.split(" | ")[0] for line in table[4:6]] == ["| scenes", "| easy-vqa"]
    assert "Postprocess" in (tmp_path / "lmms-eval.log").read_text()  # what it says is kept, but not on the terminal
    shown = ptprune("eval", *QUICK, "--out", tmp_path, "--set", "alpha=0.25")
    assert "mean retention, 2 benchmarks" in shown.out


def test_resumes_after_a_kill(ptprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, calls = LoadedModel.generate, 0

    def killed_at_the_third(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "generate", killed_at_the_third)
    assert ptprune("eval", *QUICK, "--out", tmp_path).code == 130  # one batch a row: two rows are there
    part = json.loads((tmp_path / "results.json").read_text())
    assert [(row["benchmark"], row["method"]) for row in part["rows"]] == [("scenes", "none"), ("scenes", "ptp")]
    document = ptprune("eval", *QUICK, "--out", tmp_path, "--json").document
    assert calls == 3 + 2
    assert document["rows"][:2] == part["rows"]
    assert len(document["rows"]) == 4

    monkeypatch.setattr(Checkpoint, "model", None)  # all rows are there: no weights are needed
    assert ptprune("eval", *QUICK, "--out", tmp_path, "--json").document == document
    fewer = ptprune(
        "eval", *QUICK, "--out", tmp_path, "--keep-ratio", ".5", "--benchmarks", "Scenes", "--json"
    ).document
    assert [row["score"] for row in fewer["rows"]] == [document["rows"][1]["score"]]
    assert fewer["rows"][0]["retention"] is None  # the unpruned model was not asked for
    monkeypatch.undo()
    more = ptprune("eval", "--suite", "local", "--limit", "2", "--out", tmp_path, "--json").document
    assert [row["questions"] for row in more["rows"]] == [2] * 4  # another limit is another row
    last = ptprune("eval", *QUICK, "--out", tmp_path, "--json").document
    assert {**last, "runs": last["runs"][:1]} == document
    assert len(last["runs"]) == 2
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [row["run"] for row in kept["rows"]] == [0] * 4 + [1] * 4  # rows of other options survive


def test_skipped_with_one_line_and_the_others_go_on(
    ptprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OPENAI_API_KEY", "API_TYPE"):
        monkeypatch.delenv(variable, raising=False)
    known = {benchmark.name: benchmark for benchmark in PTP13}
    monkeypatch.setitem(suites.SUITES, "mixed", (known["MME"], known["MM-Vet"], LOCAL[0]))
    result = ptprune("eval", "--suite", "mixed", "--limit", 3, "--out", tmp_path, "--json", "--expect", "paper")
    document = result.document
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "ptprune: MM-Vet: skipped, a judge model reads every answer; set OPENAI_API_KEY"
    assert lines[1].startswith("ptprune: MME: skipped, its data cannot be loaded: ")
    assert "lmms-lab-encoder/MME" in lines[1]
    assert [skip["benchmark"] for skip in document["skipped"]] == ["MM-Vet", "MME"]
    assert [row["benchmark"] for row in document["rows"]] == ["scenes", "scenes"]
    assert document["expected"]["scores"] == {"MME": 2220}

    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    nothing = ptprune("eval", "--suite", "mixed", "--benchmarks", "mm-vet", "--out", tmp_path, "--json")
    assert (nothing.code, nothing.out) == (2, "")
    assert nothing.err.splitlines()[0].startswith("ptprune: MM-Vet: skipped, its data cannot be loaded: ")
    assert nothing.err.splitlines()[1].startswith("ptprune: --suite mixed: none of its benchmarks could be run")


def test_errors_while_answering_fail_the_run(ptprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(LoadedModel, "generate", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        ptprune("eval", *QUICK, "--out", tmp_path)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "ptp,none"], "--methods ptp,none: 'none' is unknown"),
        (["--set", "alpha=2"], "--set alpha must be between 0 and 1"),
        (["--set", "layer=6"], "6 language model layers"),
        (["--attention", "closed"], "--attention closed"),
        (["--model", "/nowhere"], "--model /nowhere: no such directory"),
        (["--dtype", "int3"], "--dtype int3: unknown"),
    ],
    ids=" ".join,
)
def test_bad_options(
    ptprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr(LoadedModel, "generate", None)  # refused before anything is computed
    refused(ptprune("eval", *QUICK, "--benchmarks", "easy-vqa", "--out", tmp_path, *arguments), says)


def test_a_folder_of_something_else(ptprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "generate", None)  # refused before anything is computed
    results = tmp_path / "results.json"
    for text in ("", "[]", '{"kind": "published", "version": 1, "tables": []}', '{"kind": "suite", "version": 2}'):
        results.write_text(text)
        refused(ptprune("eval", *QUICK, "--out", tmp_path), str(results))
        assert results.read_text() == text
    refused(ptprune("eval", *QUICK, "--out", results), f"--out {results}")


def test_items_are_written_once(ptprune: Command, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "easy"
    result = ptprune("items", "easy-vqa", folder, "--count", 4)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"4 items in {folder}, task ptprune_easy_vqa\n"
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(files) == [*(f"0000{n}.png" for n in range(4)), "items.jsonl", "pictures.py", "ptprune_easy_vqa.yaml"]
    ptprune("items", "easy-vqa", folder, "--count", 3)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    first = (folder / "items.jsonl").read_text()
    assert ptprune("items", "easy-vqa", folder, "--count", 6).out.startswith("6 items")
    assert (folder / "items.jsonl").read_text().startswith(first)  # an item follows from its number
    assert "give at most that" in ptprune("items", "easy-vqa", folder, "--count", 100_000).err
    assert "holds other files" in ptprune("items", "scenes", folder).err


def shapes_in(scene: Image.Image) -> list[tuple[str, tuple[int, ...]]]:
    """(shape, commonest colour) of every tile that is not blank, told by how much of its box a shape fills."""
    found = []
    pixels = np.asarray(scene).astype(int)
    for top in range(0, scene.height, 64):
        for left in range(0, scene.width, 64):
            tile = pixels[top : top + 64, left : left + 64]
            drawn = np.abs(tile - 40).max(-1) > 0
            if drawn.any():
                rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
                fill = drawn.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
                colours, counts = np.unique(tile[drawn], axis=0, return_counts=True)
                shape = "triangle" if fill < 0.71 else "circle" if fill < 0.93 else "rectangle"
                found.append((shape, tuple(colours[counts.argmax()].tolist())))
    return found


def test_answers_follow_from_the_pictures_of_easy_vqa() -> None:
    named = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
    kinds = set()
    for item in easyvqa.easy_vqa_items(60):
        kinds.add(item.kind)
        scene = item.open()
        assert 6 <= scene.width * scene.height / 64**2 <= 12
        found = shapes_in(scene)
        assert 3 <= len(found) <= 6
        if item.kind == "colour":
            asked = item.question.removeprefix("what colour is the ").strip("?")
            assert [colour for shape, colour in found if shape == asked] == [named[item.answer]]
        else:
            asked = item.question.removeprefix("which shape is ").strip("?")
            assert [shape for shape, colour in found if colour == named[asked]] == [item.answer]
    assert kinds == {"colour", "shape"}


def test_the_command_of_the_issue(tmp_path: Path) -> None:
    """From the shell, in an empty folder."""
    line = "eval --suite local --limit 50 --keep-ratio 1,0.5 --json"
    command = [str(Path(sys.executable).with_name("ptprune")), *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["questions"] for row in rows] == [50] * 4
    assert [len(answers(tmp_path / "ptprune-eval", "scenes", *arm)) for arm in (("none", 1), ("ptp", 0.5))] == [50, 50]
    assert rows[0]["score"] > 80  # the model knows these scenes
    assert rows[2]["score"] > 60  # and such shapes
    assert rows[1]["kept_tokens"] == pytest.approx(rows[1]["tokens"] / 2, abs=1)
