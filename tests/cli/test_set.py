"""``--set`` and ``--keep-tokens``: any setting of any method, of the type that it has, and checked by its rule."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ptprune.cli import options
from ptprune.errors import SettingError, UnknownSetting
from ptprune.methods import METHODS
from tests.command import Command, refused

ALL = [(method, one.name, one.default) for method, cls in METHODS.items() for one in fields(cls)]


@pytest.mark.parametrize(("method", "name", "default"), ALL)
def test_every_setting_that_is_listed_can_be_set(method: str, name: str, default: Any) -> None:
    """The default of each, as it is listed, is read as itself."""
    given = options.parse_settings([f"{method}.{name}={default}"], None)
    assert options.read_settings(given) == {method: {name: default}}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alpha", "0.3", 0.3),
        ("alpha", " 1 ", 1),
        ("window", "none", None),
        ("normalize_instruction", "false", False),
        ("normalize_instruction", "False", False),
        ("instruction", "none", "none"),  # a name there, not the absence of one
        ("instruction", "'embedding'", "embedding"),
        ("coverage_bounds", "(0.1, .5)", (0.1, 0.5)),
        ("coverage_bounds", "[0.1, .5]", (0.1, 0.5)),
    ],
)
def test_values_get_the_type_that_the_rule_wants(name: str, text: str, value: Any) -> None:
    assert METHODS["ptp"].read(name, text) == value
    assert type(METHODS["ptp"].read(name, text)) is type(value)


def test_what_is_no_value_or_no_setting() -> None:
    for name, text in (("alpha", "half"), ("alpha", "2"), ("normalize_instruction", "1"), ("layer", "1.5")):
        with pytest.raises(SettingError, match=f"^{name} must be .*, got "):
            METHODS["ptp"].read(name, text)
    with pytest.raises(UnknownSetting, match="did you mean 'alpha'"):
        METHODS["ptp"].read("alpa", "1")
    with pytest.raises(UnknownSetting, match=r"only .*seed"):
        METHODS["random"].read("colour", "red")


def run(ptprune: Command, picture: Path, checkpoint: Path, *arguments: object) -> Any:
    return ptprune("run", picture, "--model", checkpoint, "-q", "w5 w6", "--max-new-tokens", 2, "--json", *arguments)


def test_run_takes_settings(ptprune: Command, picture: Path, checkpoint: Path) -> None:
    def kept(*arguments: object) -> list[int]:
        document = run(ptprune, picture, checkpoint, *arguments).document
        return [region["budget"] for region in document["regions"]]

    assert sum(kept("--keep-tokens", 9)) == sum(kept("--set", "keep_tokens=9")) == 9
    assert kept("--set", "ranking=tile", "--set", "thumbnail=region") == [2] * 7
    paper = ("--method", "ptp-paper")
    assert kept(*paper, "--set", "temperature=0.01") == kept(*paper, "--temperature", 0.01) != kept(*paper)
    assert sum(kept("--method", "vispruner", "--set", "important-ratio=1", "--keep-ratio", ".25")) == 7
    assert kept("--method", "random", "--set", "random.seed=1") != kept("--method", "random")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "alpha"], "--set alpha: give NAME=VALUE"),
        (["--set", "=1"], "--set =1: give NAME=VALUE"),
        (["--set", ".alpha=1"], "give NAME=VALUE"),
        (["--set", "alpha=2"], "--set alpha must be between 0 and 1, got 2"),
        (["--set", "alpa=1"], "--set alpa: PyramidTokenPruning has no setting 'alpa': did you mean 'alpha'"),
        (["--set", "fastv.layer=1"], "--set fastv.layer: the method is ptp"),
        (["--set", "nothing.layer=1"], "--set nothing.layer: the method is ptp"),
        (["--set", "alpha=.1", "--alpha", ".2"], "--set alpha: --alpha says it"),
        (["--keep-tokens", "5", "--keep-ratio", ".5"], "--keep-tokens and --keep-ratio: give one"),
        (["--set", "keep_tokens=5", "--keep-ratio", ".5"], "--keep-tokens and --keep-ratio: give one"),
        (["--keep-tokens", "0"], "--keep-tokens must be"),
        (["--tiles", "some"], "--tiles must be 'all', 'salient' or a whole number from 1"),
        (["--tiles", "0"], "--tiles must be"),
        (["--tiles", "2", "--set", "tiles=all"], "--set tiles: --tiles says it"),
    ],
    ids=" ".join,
)
def test_run_refuses(ptprune: Command, picture: Path, checkpoint: Path, arguments: list[str], says: str) -> None:
    refused(run(ptprune, picture, checkpoint, *arguments), says)


@pytest.mark.parametrize("command", ["speed", "overhead"])
def test_bench_takes_settings_of_its_methods(ptprune: Command, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    met: dict[str, Any] = {}

    def measure(setup: Any, pruned: Any, *rest: Any) -> Any:
        met.update(pruned if isinstance(pruned, dict) else {arm.method: arm.pruner for arm in pruned})
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ptprune.bench.{command}.measure", measure)
    methods = ("--methods", "ptp,dart")
    assert ptprune("bench", command, *methods, "--set", "alpha=.1", "--set", "dart.pivots=3").code == 130
    assert (met["ptp"].alpha, met["dart"].pivots, met["dart"].layer) == (0.1, 3, met["ptp"].layer)
    refused(ptprune("bench", command, *methods, "--set", "fastv.layer=3"), "fastv is not among --methods")
    refused(ptprune("bench", command, *methods, "--set", "keep_tokens=3"), "--keep-ratio says how many")
    refused(ptprune("bench", command, *methods, "--set", "none.layer=3"), "--set none.layer: no such method")
