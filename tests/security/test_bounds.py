"""Every number of an option has a most, which is refused at once."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from ptprune import PyramidTokenPruning
from ptprune.checkpoints import Checkpoint
from ptprune.checkpoints.processor import tile_options
from ptprune.cli import app
from ptprune.errors import PtpruneError, SettingError
from ptprune.vllm.settings import pruner_of, requested
from tests.command import Command, command, refused

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
NEEDED = {
    "run": [str(SCENE), "-q", "?"],
    "cost": ["--model", "internvl3-1b"],
    "items": ["scenes", "new"],
    "report": ["a.json", "--out", "a.md"],
}


@pytest.fixture
def ptprune(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    return command(capsys)


def numbers() -> Iterator[tuple[list[str], str]]:
    """(command, option) of every option that takes a number."""

    groups = [(group.typer_instance, [str(group.typer_instance.info.name)]) for group in app.registered_groups]
    for one, before in [(app, []), *groups]:
        for registered in one.registered_commands:
            callback = registered.callback
            assert callback is not None
            for name, hint in get_type_hints(callback, include_extras=True).items():
                kind, *more = get_args(hint) or (None,)
                if more and {int, float} & {kind, *get_args(kind)}:
                    options = getattr(more[0], "param_decls", None) or [f"--{name.replace('_', '-')}"]
                    yield [*before, callback.__name__], options[0]


def test_there_are_numbers() -> None:
    assert len(list(numbers())) > 30


@pytest.mark.parametrize(
    ("names", "option"), list(numbers()), ids=lambda value: "".join(value[-1:]) if isinstance(value, list) else value
)
@pytest.mark.parametrize("value", ["1000000000", "99999999999999999999999", "-1", "1e999", "nan", "9" * 5000])
def test_a_number_beyond_all_bounds(ptprune: Command, names: list[str], option: str, value: str) -> None:
    if option == "--temperature" and float(value) > 0 and float(value) < float("inf"):
        return  # hot, and of no harm
    started = time.monotonic()
    refused(ptprune(*names, *NEEDED.get(names[-1], []), option, value))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", SCENE, "-q", "?", "--max-tiles", 100_000),
        ("run", SCENE, "-q", "?", "--max-pixels", 15),
        ("run", *[SCENE] * 65, "-q", "?"),
        ("bench", "accuracy", "--ratios", ",".join(f"{n / 1000}" for n in range(1, 100))),
        ("bench", "accuracy", "--set", "alpha=" + "(" * 10_000),
        ("bench", "accuracy", "--set", "temperature=0x" + "f" * 10_000),
        ("bench", "accuracy", "--set", "temperature=1" + "0" * 400),
        ("bench", "accuracy", "--set", "layer=1" + "0" * 30),
        ("bench", "accuracy", "--set", "alpha=" + "9" * 100_000),
    ],
)
def test_more_than_there_can_be(ptprune: Command, arguments: tuple[object, ...]) -> None:
    started = time.monotonic()
    line = refused(ptprune(*arguments))
    assert time.monotonic() - started < 5
    assert len(line) < 250_000


def test_tiles_are_bounded_for_every_caller() -> None:
    with pytest.raises(SettingError, match="max_tiles 100000"):
        tile_options("internvl", Checkpoint.find(None).processor(), 100_000)


HUGE = [10**400, -(10**400), 2**63, float("inf"), float("nan"), [[]] * 9, "x" * 10**6, 1 << 20_000, {"a": 1}]


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_settings_of_a_server_and_a_request(value: Any) -> None:
    """One line of readable length, whatever is asked for."""
    pruner = pruner_of({})
    names = [name for name in inspect.signature(PyramidTokenPruning).parameters if name != "keep_tokens"]
    for name in names:
        with pytest.raises(ValueError, match=r"^ptprune: ") as error:
            pruner_of({name: value})
        assert len(str(error.value)) < 1000
        assert "\n" not in str(error.value)
        with pytest.raises(PtpruneError) as error:
            PyramidTokenPruning(**{name: value})
    for request in (value, {"keep_ratio": value}, {"x" * 10**6: value}, {value if isinstance(value, str) else "a": 1}):
        with pytest.raises(ValueError, match=r"^ptprune: ") as error:
            requested(pruner, request)
        assert len(str(error.value)) < 2000
