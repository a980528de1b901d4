"""Every block of code in the documents runs, or says above it why it does not."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ptprune import PyramidTokenPruning
from ptprune.cli import app, bench, main
from tests import test_docs
from tests.internvl import batch, prompt, tiny_internvl

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PICTURES = ("mermaid", "bibtex")
FENCE = re.compile(
    r"^(?P<mark> *<!-- not run: (?P<why>[^\n]*?) -->\n)?(?P<in> *)```(?P<as>\w*)\n(?P<code>.*?)^ *```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    why: str | None  # it is not run

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        code = re.sub(rf"^{found['in']}", "", found["code"], flags=re.M)
        yield Block(page, text[: found.start("as")].count("\n") + 1, found["as"], code, found["why"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def at_a_tiny_model() -> dict[str, Any]:
    return {
        "model": tiny_internvl(),
        "inputs": {**batch(prompt([5, 6], 5, [7, 8, 9])), "max_new_tokens": 2},
        "pruner": PyramidTokenPruning(keep_ratio=0.5),
    }


# What the text of a page has set up before its first block; pages whose blocks a test of their own runs and checks.
SET_UP: dict[str, Callable[[], dict[str, Any]]] = {"how-it-works.md": at_a_tiny_model}
CHECKED = {
    "adding-a-method.md": test_docs.test_the_methods_of_the_guide_prune,
    "programs.md": test_docs.test_the_examples_for_programs_run,
}
WITH_PYTHON = sorted({block.page for block in BLOCKS if block.language == "python" and block.page.name not in CHECKED})


def test_blocks_are_found() -> None:
    fences = sum(page.read_text().count("```") for page in PAGES)
    assert fences == 2 * len(BLOCKS)
    assert {"python", "bash"} <= {block.language for block in BLOCKS}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_its_language(block: Block) -> None:
    assert block.language in ("python", "bash", *PICTURES)
    assert block.why is None or len(block.why) > 10


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks of a page one after the other, in one namespace, from the root of the repository."""
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "page", **SET_UP.get(page.name, dict)()}
    for block in blocks_of(page):
        if block.language == "python" and block.why is None:
            exec(compile("\n" * block.line + block.code, page.name, "exec"), names)
    if page.name == "README.md":
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 2  # an answer, and the report as the comment beside it says
        assert f"# {said[1]}" in page.read_text()


def commands(block: Block) -> list[str]:
    """The command lines of a block, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=str)
def test_commands_are_right(block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands of ours have these arguments; what they do is tested elsewhere. Targets of make exist."""
    for info in (*app.registered_commands, *bench.registered_commands):
        assert info.callback is not None

        @functools.wraps(info.callback)
        def nothing(*args: Any, **kwargs: Any) -> None:
            pass

        monkeypatch.setattr(info, "callback", nothing)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for command in commands(block):
        program, *arguments = shlex.split(command)
        if program == "ptprune":
            with pytest.raises(SystemExit) as left:
                main(arguments)
            assert left.value.code == 0, (command, capsys.readouterr().err)
        elif program == "make":
            assert set(arguments) <= set(targets), command
        else:
            assert block.why is not None, f"{command}: neither ptprune nor make; say above the block why it is not run"
