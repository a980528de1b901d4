"""The notebook runs as it stands, is stored with outputs, and stays small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="needs the extra: dev")
pytest.importorskip("ipykernel", reason="needs the extra: dev")

import nbformat
from tools.notebook import executed

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook.ipynb"


def outputs(notebook: Any) -> list[str]:
    """What every cell of code shows: text in full, of anything else its kinds."""
    return [
        "".join(one.get("text", "") or f"({', '.join(sorted(one.data))})" for one in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_it_runs_and_shows_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert outputs(executed(NOTEBOOK)) == outputs(stored)
    assert "".join(outputs(stored)).count("image/") >= 3
    assert "stderr" not in NOTEBOOK.read_text()


def test_it_is_small() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
