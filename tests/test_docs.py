"""The documents say what the code does: defaults, commands, options, and links that lead somewhere."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.cli import app
from ptprune.scores import TOKEN_SCORES
from ptprune.shapes import SHAPES
from tests.internvl import batch, prompt, tiny_internvl
from tests.zoo import ZOO

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LATER = {"docs/overlay.png"}  # written by `make demo`


@pytest.mark.smoke
def test_method_settings_and_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", (ROOT / "docs/method.md").read_text(), flags=re.MULTILINE)
    documented = {name: default.strip('"') for name, default in rows}
    assert documented == {setting.name: str(setting.default) for setting in fields(PyramidTokenPruning)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            file = (document.parent / target).resolve()
            assert file.exists() or str(file.relative_to(ROOT)) in LATER, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.typer_instance.info.name for group in app.registered_groups}
    named = re.findall(r"`ptprune ([a-z]+)\b", document.read_text())
    assert set(named) <= known
    if document.name in ("README.md", "command-line.md"):
        assert set(named) == known


@torch.no_grad()
def test_the_methods_of_the_guide_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-method.md").read_text(), flags=re.DOTALL)
    monkeypatch.setattr(TOKEN_SCORES, "_scores", dict(TOKEN_SCORES._scores))
    guide: Any = ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", guide)
    exec("\n".join(code), guide.__dict__)
    model, inputs = tiny_internvl(), batch(prompt([5, 6], 5, [7, 8, 9]))
    for pruner, kept in ((guide.LoudestTokens(keep_ratio=0.25), 5), (guide.pruner, 10)):
        with pruner(model):
            model(**inputs)
        assert pruner.report.visual_tokens == (20, kept)
    with pytest.raises(ValueError, match="neighbours must be a whole number from 1, got 0"):
        guide.LoudestNeighbours().neighbours = 0
    assert guide.LoudestNeighbours().layer == 1


@torch.no_grad()
def test_the_examples_for_programs_run(capsys: pytest.CaptureFixture[str]) -> None:
    specimen = ZOO["smolvlm"]
    model, inputs = specimen.build(), specimen.inputs(specimen.prompts["one picture"])
    stock = model.generate(**inputs, max_new_tokens=8)
    names: dict[str, Any] = {"model": model, "inputs": inputs, "tokenizer": specimen.processor.tokenizer}
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/programs.md").read_text(), flags=re.DOTALL)
    pruned = None
    for example in code:
        exec(example, names)
        for output, report in names.pop("answers", []):
            pruned = output if pruned is None else pruned
            assert torch.equal(output, pruned)
            before, after = report.visual_tokens
            assert after == round(before / 2)
    assert pruned is not None
    assert not torch.equal(pruned, stock)
    assert names["text"] == names["tokenizer"].decode(pruned[0, inputs["input_ids"].shape[1] :])
    assert torch.equal(names["twin"].generate(**inputs, max_new_tokens=8), stock)
    said = capsys.readouterr().out
    assert "labels" in said
    assert "detach it before you copy" in said


def test_known_shapes_are_listed() -> None:
    text = (ROOT / "docs/command-line.md").read_text()
    assert [name for name in SHAPES if f"`{name}`" not in text] == []
