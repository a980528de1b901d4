"""The command line starts: help of every command, and the list of methods."""

from __future__ import annotations

import pytest

from ptprune import METHODS
from tests.command import command

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("name", ["", "run", "methods", "models", "verify", "cost", "bench", "eval", "items"])
def test_commands_have_help(name, capsys):
    result = command(capsys, *name.split())("--help")
    assert result.code == 0
    assert "Usage: " in result.out
    assert name in result.out


def test_methods_are_listed(capsys):
    result = command(capsys, "methods")()
    assert result.code == 0
    for method in METHODS:
        assert method in result.out
