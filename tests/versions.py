"""Tests that the installed transformers cannot pass, because its own models or its generate() are wrong there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import transformers
from packaging.version import Version


def needs_transformers(version: str, reason: str) -> pytest.MarkDecorator:
    """Skips a test, or a parameter of one, on older versions of transformers.

    Args:
        version: the first with which it passes.
        reason: what the stock model does wrong before; printed by pytest.
    """
    older = Version(transformers.__version__) < Version(version)
    return pytest.mark.skipif(older, reason=f"transformers before {version}: {reason}")


repeats_tiles = needs_transformers(
    "5.19", "generate() repeats the tiles of beams and several returns in a wrong order, or before they are encoded"
)
encodes_first = needs_transformers("5.18", "generate() does not encode pictures before it calls the model")


def mode_items(modes: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Names of modes of generate() as parameters of a test; those that repeat prompts need ``repeats_tiles``.

    Args:
        modes: name -> options of generate().
    """
    repeating = {"num_beams", "num_return_sequences"}
    return [pytest.param(name, marks=repeats_tiles if repeating & set(modes[name]) else ()) for name in modes]
