"""Modules stand on floors: each imports from below, so nothing depends on what is built on it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ptprune

ROOT = Path(ptprune.__file__).parent
FLOORS = [  # from the bottom to the top
    "errors",
    "text",
    "bounds",
    "files",
    "templates",
    "budget",
    "clock",
    "settings",
    "shapes",
    "upload",
    "selection",
    "steps",
    "layout",
    "conventions",
    "scores",
    "families",
    "report",
    "encoding",
    "attach",
    "pruner",
    "methods",
    "cost",
    "draw",
    "explain",
    "poster",
    "pictures",
    "tiny",
    "checkpoints",
    "asking",
    "verification",
    "results",
    "bench",
    "lmms",
    "vllm",
    "app",
    "cli",
]
STRANGERS = {"vllm": {"attach"}}  # vLLM runs the model itself
ENTRANCES = {"__init__", "__main__"}  # what users import and start stands on everything


def floor_of(path: Path) -> str:
    """The top module or package that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(source: str, package: str = "ptprune") -> set[str]:
    """The floors that the source of a module of ``package`` imports from, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: 1 - node.level or None]) + "." if node.level else ""
            module = f"{base}{node.module or ''}".rstrip(".")
            names = [f"{module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ptprune.")}
    return found & set(FLOORS)


def test_every_module_has_a_floor():
    assert {floor_of(path) for path in ROOT.rglob("*.py")} - ENTRANCES == set(FLOORS)


@pytest.mark.smoke
@pytest.mark.parametrize("floor", FLOORS)
def test_modules_import_from_below(floor):
    allowed = {*FLOORS[: FLOORS.index(floor) + 1]} - STRANGERS.get(floor, set())
    for path in [path for path in ROOT.rglob("*.py") if floor_of(path) == floor]:
        package = ".".join(("ptprune", *path.relative_to(ROOT).parts[:-1]))
        assert imported(path.read_text(), package) <= allowed, path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("source", "floors"),
    [
        ("from . import report", {"bench"}),
        ("from ..cli import run", {"cli"}),
        ("from .. import vllm", {"vllm"}),
        ("from ptprune.cli.run import main", {"cli"}),
        ("from ptprune import draw, PyramidTokenPruning", {"draw"}),
        ("import ptprune.vllm.plugin as plugin", {"vllm"}),
        ("def later():\n    from ptprune.attach import cut", {"attach"}),
        ("import torch", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, floors):
    assert imported(source, "ptprune.bench") == floors
