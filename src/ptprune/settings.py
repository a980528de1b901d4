"""What the settings of a pruner may be and when they may change: one mechanism for every method.

A dataclass field that is made with ``setting`` carries a ``Rule``; ``Settings`` applies it whenever the field is set.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from inspect import isfunction, ismemberdescriptor
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ptprune.errors import AttachError, MethodError, SettingError, UnknownSetting

_RULE = "ptprune.rule"  # key in a field's metadata
LONGEST = 400  # characters of a value in an error message


def plain(value: Any) -> Any:
    """NumPy's numbers and strings as Python's, so that equality, JSON and pickles are plain; all else as it is."""
    for numpy_type, python_type in ((np.bool_, bool), (np.integer, int), (np.floating, float), (np.str_, str)):
        if isinstance(value, numpy_type):
            return python_type(value)
    return value


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
        allowed: what the values are, in words that follow "must be"; a function where that changes.
        holds: whether a value, made plain, is one of them; called with anything.
        normal: what is stored of a value.
    """

    allowed: str | Callable[[], str]
    holds: Callable[[Any], bool]
    normal: Callable[[Any], Any] = plain

    def apply(self, name: str, value: Any) -> Any:
        """The value as it is stored.

        Raises:
            SettingError: naming the setting, the value and what is allowed.
        """
        stored = self.normal(value)
        if not self.holds(stored):
            allowed = self.allowed if isinstance(self.allowed, str) else self.allowed()
            raise SettingError(f"{name} must be {allowed}, got {shown(value)}")
        return stored

    def read(self, name: str, text: str) -> Any:
        """The value that a text means, as it is stored: the first of a Python literal, true, false or none in any
        case, and the text itself that is allowed.

        Raises:
            SettingError: where none of these is.
        """
        meant = [_literal(text)] if _literal(text) is not None else []
        meant += [word for name_of, word in WORDS.items() if text.strip().lower() == name_of]
        meant.append(text.strip())
        return self.apply(name, next((value for value in meant if self.holds(self.normal(value))), meant[0]))


WORDS = {"true": True, "false": False, "none": None}


def _literal(text: str) -> Any:
    """What a text is in Python; None where it is nothing there, and for None."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def shown(value: Any) -> str:
    """A value in an error message; of arrays and booleans also why they are no numbers."""
    if isinstance(value, bool | np.bool_):
        return f"{value!r}, a truth value"
    if isinstance(value, np.ndarray | Tensor):
        kind = "Tensor" if isinstance(value, Tensor) else "NumPy array"
        return f"a {kind} {list(value.shape)}: give a plain number, such as .item() returns"
    try:
        told = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes
        told = f"a {type(value).__name__} that is too large to be shown"
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}..."


def setting(default: Any, rule: Rule) -> Any:
    """A dataclass field with a rule. A subclass that overrides the default inherits the rule."""
    return field(default=default, metadata={_RULE: rule})


def is_number(value: Any) -> bool:
    """Whether a plain value is a number that tensors can hold; a boolean is not, nor is 10**20."""
    return isinstance(value, float) or is_whole(value)


def is_whole(value: Any) -> bool:
    """Whether a plain value is a whole number of at most 64 bits; a boolean is not, nor is 2.0."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def number(allowed: str, holds: Callable[[float], bool], *, optional: bool = False) -> Rule:
    """A rule for numbers.

    Args:
        holds: whether a number is in the range that ``allowed`` tells; must be False for NaN.
        optional: whether None is allowed too.
    """
    if optional:
        return Rule(f"None or {allowed}", lambda value: value is None or is_number(value) and holds(value))
    return Rule(allowed, lambda value: is_number(value) and holds(value))


def whole(smallest: int, *, because: str = "", optional: bool = False) -> Rule:
    """A rule for whole numbers from ``smallest``; ``because`` tells users why no smaller one will do."""
    allowed = f"a whole number from {smallest}" + (f" ({because})" if because else "")
    return number(allowed, lambda value: is_whole(value) and value >= smallest, optional=optional)


def one_of(*names: str) -> Rule:
    """A rule for one of a few names."""
    *most, last = map(repr, names)
    return Rule(f"{', '.join(most)} or {last}", lambda value: isinstance(value, str) and value in names)


class Named(Protocol):
    """What has names, and some that mean something else."""

    reserved: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]: ...


def score_of(registry: Named) -> Rule:
    """The rule for a setting that names a score. Names are looked up late, so that users' scores count too."""

    def names() -> tuple[str, ...]:
        return *registry.names, *registry.reserved

    return Rule(
        lambda: f"one of {', '.join(map(repr, names()))}", lambda value: isinstance(value, str) and value in names()
    )


def ratios(allowed: str) -> Rule:
    """A rule for two ratios, the smaller one first; stored as a tuple, which nobody can change in place."""
    return Rule(
        allowed,
        lambda pair: (
            isinstance(pair, tuple) and len(pair) == 2 and all(map(is_number, pair)) and 0 <= pair[0] <= pair[1] <= 1
        ),
        lambda pair: tuple(map(plain, pair)) if isinstance(pair, tuple | list) else pair,
    )


RATIO = number("over 0 and at most 1", lambda value: 0 < value <= 1)
SHARE = number("between 0 and 1", lambda value: 0 <= value <= 1)
POSITIVE = number("over 0 and finite", lambda value: 0 < value < float("inf"))
FLAG = Rule("True or False", lambda value: isinstance(value, bool))


class Settings:
    """Mixin of a dataclass whose fields are settings, checked whenever they are set.

    A value can be set where a copy with that value can be made: besides the field's rule, the checks of every
    ``__post_init__`` hold. What is refused leaves the old value. While ``_in_use`` is over 0, no field can be set.
    """

    _in_use = 0  # how many models work with these settings now
    _trial = False  # whether this is a copy to try a value on
    _own_code = False  # whether code of the class runs, which may give itself any attribute

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("__init__", "__post_init__", "select"):
            if isfunction(function := cls.__dict__.get(name)):
                setattr(cls, name, _as_own_code(function))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, or an attribute that there is, or a name with a leading underscore.

        Raises:
            SettingError: on a value that the field cannot have.
            UnknownSetting: on a name that nothing reads.
            AttachError: while the settings are in use.
        """
        rules = self._rules
        if name in rules:
            self._refuse_in_use(name, "changed")
            value = rules[name].apply(name, value)
            # a field without a value is being initialised, and ``__post_init__`` is still to come
            if name in vars(self) and not self._trial:
                twin = type(self).__new__(type(self))
                twin._trial = True
                twin.__setstate__({**self.__getstate__(), name: value})
                value = getattr(twin, name)
        elif not (name.startswith("_") or self._own_code or hasattr(type(self), name) or name in vars(self)):
            own = ". Declare attributes of your own in the class, or begin them with an underscore"
            raise UnknownSetting(f"{type(self).__name__} has no setting {name!r}{_instead(name, rules, own)}")
        super().__setattr__(name, value)

    @classmethod
    def read(cls, name: str, text: str) -> Any:
        """The value of a setting that a user typed, see ``Rule.read``.

        Raises:
            SettingError: on a value that the setting cannot have.
            UnknownSetting: on a name that is none.
        """
        kind: Any = cls
        rules = _rules_of(kind)
        if name not in rules:
            raise UnknownSetting(f"{cls.__name__} has no setting {name!r}{_instead(name, rules)}")
        return rules[name].read(name, text)

    def differing(self, kind: type[Any] | None = None) -> dict[str, Any]:
        """The settings that are not at their defaults, by name, in the order of the fields.

        Args:
            kind: a class that this one derives from: its settings alone, and its defaults. This class by default.
        """
        values = ((each, getattr(self, each.name)) for each in fields(kind or self))  # type: ignore[arg-type]
        return {each.name: value for each, value in values if value != each.default}

    def __delattr__(self, name: str) -> None:
        if name in self._rules:
            self._refuse_in_use(name, "deleted")
            raise SettingError(f"{name} cannot be deleted, which would leave the class's default: set it")
        super().__delattr__(name)

    def _refuse_in_use(self, name: str, how: str) -> None:
        if self._in_use > 0:
            raise AttachError(f"{name} cannot be {how} while the pruner is attached: detach it first")

    @property
    def _rules(self) -> Mapping[str, Rule]:
        kind: Any = type(self)
        return _rules_of(kind)

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        """For ``__post_init__``: a rule that no field can have alone, or that is easier written this way.

        Raises:
            SettingError: where it does not hold.
        """
        if not holds:
            raise SettingError(f"{name} must be {allowed}, got {shown(getattr(self, name))}")

    def __post_init__(self) -> None:
        """Checks that involve several fields."""

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings, never a model."""
        return {name: getattr(self, name) for name in self._rules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.__post_init__()


def _instead(name: str, rules: Mapping[str, Rule], more: str = "") -> str:
    """What to say to a name that is no setting: similar ones, else all."""
    if close := get_close_matches(name, rules):
        return f": did you mean {' or '.join(map(repr, close))}?"
    return f", only {', '.join(rules)}{more}"


@functools.cache
def _rules_of(cls: type[Any]) -> Mapping[str, Rule]:
    """The rule of every field; the nearest class on the way up that gives it one decides.

    Raises:
        MethodError: on a default that the class states but ``@dataclass`` did not take: it would be ignored without a
            word. Names the class and the setting.
    """
    tables = [base.__dict__.get("__dataclass_fields__", {}) for base in cls.__mro__]
    rules = {}
    for each in fields(cls):
        stated = getattr(cls, each.name, MISSING)
        if each.default is not MISSING and stated is not each.default and not ismemberdescriptor(stated):
            raise MethodError(
                f"{cls.__name__}.{each.name} is no default that @dataclass knows, and would be ignored: write "
                f"`{each.name}: <type> = ...` in a class under @dataclass(kw_only=True)"
            )
        found = (table[each.name].metadata.get(_RULE) for table in tables if each.name in table)
        # fields of users' methods may have no rule
        rules[each.name] = next((rule for rule in found if rule is not None), Rule("anything", lambda _: True))
    return rules


def _as_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a class, inside which ``self`` may get attributes that are no settings."""

    @functools.wraps(function)
    def call(self: Settings, *args: Any, **kwargs: Any) -> Any:
        before, self._own_code = self._own_code, True
        try:
            return function(self, *args, **kwargs)
        finally:
            self._own_code = before

    return call
