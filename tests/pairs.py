"""Cases for a test with many parameters: few of them, yet every two values occur together in one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Case = dict[str, Any]


def all_pairs(
    axes: Mapping[str, Sequence[Any]], possible: Callable[[Case], bool] = lambda case: True, seed: int = 0
) -> list[Case]:
    """Cases in which every pair of values of two axes occurs that can occur; always the same for the same axes.

    Args:
        axes: name of a parameter -> its values.
        possible: whether a case makes sense; it is asked about unfinished cases too, and says yes where it cannot tell.
    """
    rng = random.Random(seed)
    missing = {
        frozenset([(a, x), (b, y)]): None  # a dictionary keeps the order, a set has another in every process
        for a, b in combinations(axes, 2)
        for x in axes[a]
        for y in axes[b]
        if possible({a: x, b: y})
    }
    cases = []
    while missing:
        case = None
        for _ in range(200):
            case = _grown(
                dict(sorted(next(iter(missing)), key=lambda pair: list(axes).index(pair[0]))),
                axes,
                missing,
                possible,
                rng,
            )
            if case is not None:
                break
        assert case is not None, f"{next(iter(missing))} is possible, but no case with it is"
        for pair in combinations(case.items(), 2):
            missing.pop(frozenset(pair), None)
        cases.append({name: case[name] for name in axes})
    return cases


def _grown(
    case: Case,
    axes: Mapping[str, Sequence[Any]],
    missing: Mapping[frozenset[tuple[str, Any]], None],
    possible: Callable[[Case], bool],
    rng: random.Random,
) -> Case | None:
    """A case with the rest of its values: each the one that makes most of the missing pairs, or None at a dead end."""
    names = [name for name in axes if name not in case]
    rng.shuffle(names)
    for name in names:
        values = [value for value in axes[name] if possible({**case, name: value})]
        if not values:
            return None
        rng.shuffle(values)
        taken = list(case.items())
        case[name] = max(values, key=lambda value: sum(frozenset([pair, (name, value)]) in missing for pair in taken))  # noqa: B023
    return case


def identity(case: Case) -> str:
    """What pytest calls a case."""
    return "-".join(str(value) for value in case.values() if value is not None)
