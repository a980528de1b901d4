"""Two folders of items, the command line called in this process, and lmms-eval's in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries that read it: no test may wait for a network

import pytest
import torch
from tests.command import Command, Result, command

from ptprune.bench.items import folder as folders
from ptprune.cli.console import quiet_libraries

torch.set_num_threads(1)  # the models are tiny: threads only wait for each other

COUNT = 24


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    quiet_libraries()


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folders ``scenes`` and ``easy-vqa``, each of ``COUNT`` items."""
    directory = tmp_path_factory.mktemp("items")
    for name in folders.SETS:
        assert folders.write(name, directory / name, COUNT) == COUNT
    return directory


@pytest.fixture
def ptprune(capsys: pytest.CaptureFixture[str]) -> Command:
    """``ptprune("eval", ...)``."""
    return command(capsys)


def start(*arguments: object, processes: int = 1) -> Result:
    """``python -m ...``, or as many processes of it, as ``accelerate launch`` starts them on a CPU."""
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *(launch if processes > 1 else []), *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def samples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What lmms-eval's command logged, by task."""
    found = {}
    for path in folder.rglob("*_samples_*.jsonl"):
        task = path.stem.split("_samples_")[1]
        assert task not in found
        found[task] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def answers(folder: Path, benchmark: str, method: str, ratio: float) -> list[dict[str, Any]]:
    """What ``ptprune eval`` kept of one arm."""
    path = folder / "answers" / f"{benchmark}-{method}-{ratio:g}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def right(answered: list[dict[str, Any]]) -> str:
    """A digit an item, as ``ptprune bench accuracy`` has them."""
    return "".join("01"[answer["answer"].strip() == answer["target"]] for answer in answered)
