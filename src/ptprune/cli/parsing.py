"""What commands that compare methods are told in one word each: ratios, settings, names."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from ptprune.errors import SettingError, UserError

RATIOS = ".75,.5,.25,.1,.05"


def parse_ratios(text: str, option: str = "--ratios") -> list[float]:
    """Each once, largest first."""
    ratios = set()
    for part in text.split(","):
        try:
            ratio = float(part)
        except ValueError:
            raise UserError(f"{option} {text}: {part.strip() or 'nothing'!r} is no number; give {RATIOS}") from None
        if not 0 < ratio <= 1:
            raise UserError(f"{option} {text}: {part.strip()} is out of range; each must be over 0 and at most 1")
        ratios.add(ratio)
    return sorted(ratios, reverse=True)


def parse_settings(pairs: list[str], ratios: str = "--ratios") -> dict[str, Any]:
    """NAME=VALUE pairs; values as Python writes them, anything else is text.

    Args:
        ratios: the option that says how many tokens stay.
    """
    given = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UserError(f"--set {pair}: give NAME=VALUE, such as alpha=0.3")
        if name in ("keep_ratio", "keep_tokens"):
            raise UserError(f"--set {pair}: {ratios} says how many tokens stay")
        try:
            given[name] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            given[name] = value.strip()
    return given


def check_settings(given: dict[str, Any]) -> None:
    """Raises UserError for a setting that ptp does not have, or a value out of range."""
    from ptprune.methods import make_pruner

    try:
        make_pruner("ptp", given)
    except SettingError as error:
        raise UserError(f"--set {error}") from None


def parse_methods(text: str, known: Sequence[str]) -> list[str]:
    """Names of methods, each of them known."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--methods {text}: {name or 'nothing'!r} is unknown; give some of {', '.join(known)}")
    return names
