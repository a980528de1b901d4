"""What newcomers read first: the version, help without noise, and the known shapes."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

import ptprune as package
from ptprune.shapes import SHAPES
from tests.command import Command

COMMANDS = ["", "run", "verify", "models", "methods", "cost", "items", "eval"]
COMMANDS += ["bench", "bench accuracy", "bench speed", "bench overhead", "bench report"]


def test_the_version(ptprune: Command) -> None:
    result = ptprune("--version").silent
    assert result.code == 0
    assert result.out.startswith(f"ptprune {package.__version__} ")
    assert all(f"{name} {version(name)}" in result.out for name in ("torch", "transformers"))
    assert result.out.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_no_noise(ptprune: Command, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = ptprune(*name.split(), "--help").out
    assert "<bool>" not in shown
    assert not re.search(r"\(default", shown)
    assert not re.search(r"default: \(", shown.replace("(0.", ""))
    for line in shown.splitlines():
        assert line.count("default: ") <= 1, line


def test_cost_lists_the_shapes_that_it_knows(ptprune: Command) -> None:
    names = [line.split()[0] for line in ptprune("cost").out.splitlines()[1:-1]]
    assert names == list(SHAPES)
    assert list(ptprune("cost", "--json").document["shapes"]) == list(SHAPES)
