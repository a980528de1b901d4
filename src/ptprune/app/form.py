"""What a visitor asked for: the values of the page's controls, checked, as a question and a pruner."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from ptprune.encoding import tells_encoding
from ptprune.errors import UserError
from ptprune.methods import METHODS, make_pruner
from ptprune.pruner import TokenPruner

LEVELS = ("tiles", "tokens", "question")
OWN_LEVELS = {"ptp": ("tokens", "question"), "ptp-paper": LEVELS}
"""Method -> the levels that are on by default; other methods have no such choice."""
MAX_QUESTION = 2000  # characters
MAX_SETTINGS = 500  # characters of further settings
MAX_NEW_TOKENS, MAX_TILES = 512, 64
EVERYWHERE = ("keep_ratio", "layer", "tiles", "vision_layer")  # controls that belong to every method
OF_PTP = ("alpha", "temperature", "thumbnail")
OPTIONAL = ("layer", "vision_layer", "alpha", "temperature", "max_tiles")  # numbers, in fields for text


class Prompt(NamedTuple):
    """All that decides what the model is shown. While it stays the same, an encoded picture can be used again."""

    picture: Path
    question: str
    model: str
    max_tiles: int | None


@dataclass(frozen=True)
class Form:
    """The page's controls. An empty optional control is None, and keeps the method's or the model's own default.

    Attributes:
        levels: those of ``LEVELS`` that PTP uses; other methods have no such choice.
        more: further settings of the method, written as in a call in Python.
        compare: whether the model is asked without pruning too.
    """

    picture: Path | None
    question: str
    model: str
    method: str = "ptp"
    keep_ratio: float = 0.5
    levels: tuple[str, ...] = OWN_LEVELS["ptp"]
    layer: int | None = None
    alpha: float | None = None
    temperature: float | None = None
    thumbnail: str | None = None
    tiles: str | None = None
    vision_layer: int | None = None
    max_tiles: int | None = None
    max_new_tokens: int = 64
    more: str = ""
    compare: bool = True

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Form:
        """From what a browser sent, which may be anything.

        Raises:
            UserError: on a value of the wrong kind, or one that asks for too much.
        """
        text = {name: str(values.get(name) or "").strip() for name in ("question", "model", "method", "more")}
        for name, most in (("question", MAX_QUESTION), ("more", MAX_SETTINGS)):
            if len(text[name]) > most:
                raise UserError(f"{name}: {len(text[name])} characters are too many; write at most {most}")
        levels = tuple(level for level in LEVELS if level in (values.get("levels") or ()))
        limits = {"layer": None, "vision_layer": None, "max_tiles": MAX_TILES, "max_new_tokens": MAX_NEW_TOKENS}
        values = {**values, **{name: _written(name, values.get(name)) for name in OPTIONAL}}
        whole = {name: _whole(name, values.get(name), most) for name, most in limits.items()}
        return cls(
            picture=Path(values["picture"]) if values.get("picture") else None,
            levels=levels,
            keep_ratio=_number("keep_ratio", values.get("keep_ratio")) or 0.0,
            alpha=_number("alpha", values.get("alpha")),
            temperature=_number("temperature", values.get("temperature")),
            thumbnail=str(values["thumbnail"]) if values.get("thumbnail") else None,
            tiles=str(values["tiles"]) if values.get("tiles") else None,
            layer=whole["layer"],
            vision_layer=whole["vision_layer"],
            max_tiles=whole["max_tiles"],
            max_new_tokens=whole["max_new_tokens"] or cls.max_new_tokens,
            compare=bool(values.get("compare")),
            **text,
        )

    def prompt(self) -> Prompt:
        """Raises UserError where the picture or the question is missing."""
        if self.picture is None:
            raise UserError("Choose a picture first: upload one, paste one, or take an example.")
        if not self.question:
            raise UserError("Ask something about the picture first.")
        return Prompt(self.picture, self.question, self.model, self.max_tiles)

    def pruner(self, encodes_apart: bool = False) -> TokenPruner:
        """The settings as a pruner; unless they say what is encoded, that of ``ptprune run``.

        Args:
            encodes_apart: whether the model encodes tiles apart, so that some can be left out.

        Raises:
            UserError, SettingError: where there is no such pruner.
        """
        given = {name: getattr(self, name) for name in EVERYWHERE}
        if self.method in OWN_LEVELS:
            given |= {name: getattr(self, name) for name in OF_PTP} | self._levels()
        more = further(self.more)
        for name in more:
            if given.get(name) is not None:
                raise UserError(f"{name}: another control of the page says it already; leave it out of the settings")
        pruner = make_pruner(self.method, given)
        for name in more.keys() - type(pruner).__dataclass_fields__.keys():
            raise UserError(f"settings: {self.method} has none that is called {name}")
        pruner = replace(pruner, **more)
        return pruner.sparing() if encodes_apart and not self.tells_encoding() else pruner

    def tells_encoding(self) -> bool:
        """Whether a control or a further setting says what of the picture is encoded; otherwise ``pruner`` does."""
        return self.tiles is not None or self.vision_layer is not None or tells_encoding(further(self.more))

    def _levels(self) -> dict[str, Any]:
        """The settings that switch PTP's levels on and off."""
        if "tokens" not in self.levels and "question" not in self.levels:
            raise UserError("levels: tokens would be kept at random; leave tokens or the question on")
        changed: dict[str, Any] = {}
        if ("tiles" in self.levels) != ("tiles" in OWN_LEVELS[self.method]):
            changed["region"] = "cls-similarity" if "tiles" in self.levels else "uniform"
        if "question" not in self.levels:
            changed["instruction"] = "none"
        if "tokens" not in self.levels:
            changed["alpha"] = 1.0
        return changed


def further(text: str) -> dict[str, Any]:
    """Settings written as in a call: ``ranking="image", window=8``.

    Raises:
        UserError: on anything but names with literal values. Nothing is executed.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError(text)
        names = [each.arg for each in call.keywords]
        if None in names or len(set(names)) < len(names):
            raise ValueError(text)
        return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError('settings: write them as in Python, such as ranking="image", window=8') from None


def names_of(method: str) -> dict[str, Any]:
    """The settings of a method that no control of the page has, and their defaults."""
    own = {*EVERYWHERE, *(OF_PTP if method in OWN_LEVELS else ())}
    fields = METHODS[method].__dataclass_fields__
    return {name: field.default for name, field in fields.items() if name not in own}


def _written(name: str, value: Any) -> Any:
    """A number that came as text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{name}: {value[:20]!r} is no number") from None


def _number(name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise UserError(f"{name}: {value!r} is no number")
    return value


def _whole(name: str, value: Any, most: int | None) -> int | None:
    number = _number(name, value)
    if number is None:
        return None
    if number != int(number) or number < 0 or (most is not None and number > most):
        raise UserError(f"{name}: {number:g} is out of range; give a whole number" + (f" up to {most}" if most else ""))
    return int(number)
