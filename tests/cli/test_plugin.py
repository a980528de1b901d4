"""``--plugin FILE.py``: a user's own methods and scores on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptprune.cli.plugin import NAME, load
from ptprune.errors import UserError
from ptprune.methods import METHODS
from ptprune.scores import TOKEN_SCORES
from tests.command import Command, refused

METHOD = '''
from dataclasses import dataclass

from ptprune import METHODS, TokenPruner
from ptprune.scores import TOKEN_SCORES
from ptprune.selection import Selection, keep_best
from ptprune.settings import setting, whole


@dataclass(kw_only=True)
class Loudest(TokenPruner):
    """Keep the tokens whose features are longest."""

    layer: int = 0
    step: int = setting(1, whole(1))

    needs = frozenset({"token_features"})

    def select(self, image):
        length = image.finite("token_features").norm(dim=-1)
        return Selection(keep_best(length, self.num_kept(len(length))), scores={"token": length})


@TOKEN_SCORES.register("loudness", needs=("token_features",))
def loudness(image):
    """Length of the token's features."""
    return image.finite("token_features").norm(dim=-1)
'''


@pytest.fixture(autouse=True)
def only_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(METHODS)
    monkeypatch.setattr(TOKEN_SCORES, "_scores", dict(TOKEN_SCORES._scores))
    yield
    METHODS.clear()
    METHODS.update(before)
    sys.modules.pop(NAME, None)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(METHOD)
    return path


def test_run_with_a_method_of_ones_own(ptprune: Command, picture: Path, checkpoint: Path, plugin: Path) -> None:
    asked = ("run", picture, "--model", checkpoint, "-q", "w5", "--max-new-tokens", 1, "--json", "--plugin", plugin)
    document = ptprune(*asked, "--method", "Loudest", "--set", "step=2", "--keep-ratio", ".25").document
    assert document["visual_tokens"] == {"before": 28, "after": 7}
    refused(ptprune("run", picture, "--model", checkpoint, "-q", "w5", "--method", "Quietest"), "Quietest")


def test_run_with_a_score_of_ones_own(ptprune: Command, picture: Path, checkpoint: Path, plugin: Path) -> None:
    asked = ("run", picture, "--model", checkpoint, "-q", "w5", "--max-new-tokens", 1, "--json")
    refused(ptprune(*asked, "--set", "token=loudness"), "--set token must be one of")
    assert ptprune(*asked, "--plugin", plugin, "--set", "token=loudness").document["visual_tokens"]["after"] == 14


def test_bench_accuracy_and_its_page(ptprune: Command, plugin: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra: scenes")
    out = tmp_path / "mine.json"
    asked = ("bench", "accuracy", "--methods", "Loudest", "--ratios", ".5", "--limit", 2, "--out", out, "--json")
    document = ptprune(*asked, "--plugin", plugin).document
    assert "Loudest" in [row["method"] for row in document["results"]]
    assert document["runs"][0]["identity"]["plugin"]
    METHODS.pop("Loudest")
    page = tmp_path / "page.md"
    refused(ptprune("bench", "report", out, "--out", page), "knows no method 'Loudest'", "--plugin")
    TOKEN_SCORES._scores.pop("loudness")
    plugin.write_text(METHOD + "\n# changed\n")
    refused(ptprune(*asked, "--plugin", plugin), "another plugin")
    assert ptprune("bench", "report", out, "--out", page).code == 0  # the method is known again
    assert "Loudest" in page.read_text()


def test_methods_lists_them(ptprune: Command, plugin: Path) -> None:
    found = json.loads(ptprune("methods", "--plugin", plugin, "--json").out)["methods"]
    assert found[-1]["name"] == "Loudest"
    assert found[-1]["settings"]["step"] == 1


def test_a_name_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "named.py"
    path.write_text(METHOD + '\nMETHODS["loudest"] = Loudest\n')
    load(path)
    assert "loudest" in METHODS
    assert "Loudest" not in METHODS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "defines no class derived from TokenPruner"),
        ("from ptprune import PyramidTokenPruning\n", "defines no class"),
        ("x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
        ("x = (\n", "line 1: SyntaxError: '\\(' was never closed"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("from ptprune import METHODS\nMETHODS['ptp'] = METHODS['random']\n", "'ptp' is a method of ptprune"),
        (METHOD.replace("token_features", "token_feature"), "token_feature"),
        (METHOD.replace("@dataclass(kw_only=True)\n", ""), "method Loudest: .*@dataclass"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    before = dict(METHODS)
    with pytest.raises(UserError, match=rf"--plugin {path}: .*{says}" if "token_feature" not in says else says):
        load(path)
    assert METHODS["ptp"] is before["ptp"]


def test_files_that_are_not_there(ptprune: Command, picture: Path, tmp_path: Path) -> None:
    refused(ptprune("run", picture, "-q", "w5", "--plugin", tmp_path / "none.py"), "no such file")
    refused(ptprune("run", picture, "-q", "w5", "--plugin", picture), "not a .py file")


def test_help_says_that_the_file_is_run(ptprune: Command) -> None:
    for command in (["run"], ["bench", "accuracy"], ["bench", "speed"], ["bench", "overhead"], ["eval"]):
        assert "This runs the file" in " ".join(ptprune(*command, "--help").out.replace("│", " ").split())
