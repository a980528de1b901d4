"""The command line, called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ptprune.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def silent(self) -> Result:
        """This, where nothing was said on standard error."""
        assert self.err == ""
        return self

    @property
    def document(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return json.loads(self.out)  # one object, and nothing else on standard output


Command = Callable[..., Result]


def command(capsys: pytest.CaptureFixture[str], *first: str) -> Command:
    """``command(capsys, "run")(...)``: exit status and both streams of ``ptprune run ...``."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([*first, *map(str, arguments)])
        streams = capsys.readouterr()
        code = left.value.code
        return Result(code if isinstance(code, int) else 1, streams.out, streams.err)

    return call


def refused(result: Result, *says: str) -> str:
    """Its one line on standard error, where the command refused what it was given."""
    assert result.code == 2, result.err
    assert result.out == ""
    assert result.err.startswith("ptprune: ")
    assert result.err.count("\n") == 1
    for part in says:
        assert part in result.err
    return result.err
