from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptprune.budget import allocate, passing
from tests.oracle import slow_budgets

weights = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([0.0, 1.0, 1e-300, 1e300])


@st.composite
def problems(draw):
    capacities = draw(st.lists(st.integers(0, 300), min_size=1, max_size=40))
    chosen = draw(st.lists(weights, min_size=len(capacities), max_size=len(capacities)))
    return chosen, capacities, draw(st.integers(0, sum(capacities)))


@pytest.mark.smoke
@given(problems())
def test_sums_exactly_and_respects_caps(problem):
    chosen, capacities, total = problem
    budgets = allocate(chosen, capacities, total)
    assert sum(budgets) == total
    assert all(0 <= budget <= capacity for budget, capacity in zip(budgets, capacities, strict=True))


@given(st.lists(weights, min_size=1, max_size=40), st.integers(1, 300), st.floats(0, 1))
def test_is_monotone_and_fair_among_equal_tiles(chosen, capacity, ratio):
    budgets = allocate(chosen, [capacity] * len(chosen), math.floor(ratio * capacity * len(chosen)))
    for i, first in enumerate(chosen):
        for j, second in enumerate(chosen):
            if first > second:
                assert budgets[i] >= budgets[j]
            elif first == second and i < j:
                assert 0 <= budgets[i] - budgets[j] <= 1, "ties go to the lower index, by one token at most"


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.integers(1, 256), st.floats(0, 1))
def test_is_what_pouring_slowly_gives(chosen, capacity, ratio):
    total = math.floor(ratio * capacity * len(chosen))
    budgets, slow = (
        allocate(chosen, [capacity] * len(chosen), total),
        slow_budgets(chosen, [capacity] * len(chosen), total),
    )
    assert sum(slow) == total
    # remainders that differ by less than float noise may fall to either tile
    assert all(abs(mine - theirs) <= 1 for mine, theirs in zip(budgets, slow, strict=True))
    assert sum(mine != theirs for mine, theirs in zip(budgets, slow, strict=True)) <= 2


@given(problems(), st.floats(0.001, 1000))
def test_only_proportions_count(problem, factor):
    chosen, capacities, total = problem
    scale = 2.0 ** round(math.log2(factor))  # a power of two scales floats without rounding
    chosen = [min(w, 1e290) if w > 1e-290 else 0.0 for w in chosen]
    assert allocate([w * scale for w in chosen], capacities, total) == allocate(chosen, capacities, total)


@pytest.mark.parametrize(
    ("chosen", "capacities", "total", "expected"),
    [
        ([1, 1, 1], [4, 4, 4], 6, [2, 2, 2]),
        ([1, 1, 1], [4, 4, 4], 7, [3, 2, 2]),
        ([100, 1, 1], [4, 4, 4], 8, [4, 2, 2]),  # the excess is handed on in proportion
        ([100, 3, 1], [4, 4, 4], 8, [4, 3, 1]),
        ([1, 1], [2, 6], 4, [1, 3]),  # proportional to weight times size
        ([1, 0, 0], [4, 4, 8], 10, [4, 2, 4]),  # only zero weights are left: by size
        ([0, 0], [4, 4], 3, [2, 1]),
        ([1], [9], 9, [9]),
        ([1, 1], [0, 5], 5, [0, 5]),
    ],
)
def test_by_hand(chosen, capacities, total, expected):
    assert allocate(chosen, capacities, total) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1, 2], 1), "1 weights for 2 regions"),
        (([1.0, float("nan")], [1, 2], 1), "finite"),
        (([1.0, float("inf")], [1, 2], 1), "finite"),
        (([1.0, -1.0], [1, 2], 1), "not negative"),
        (([1.0], [-1], 0), "capacities"),
        (([1.0], [4], 5), "between 0 and 4, got 5"),
        (([1.0], [4], -1), "between 0 and 4, got -1"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        allocate(*arguments)


@pytest.mark.parametrize(
    ("groups", "kept", "margin", "floor", "expected"),
    [
        (10, 40, 1.0, 0.0, 4),
        (10, 40, 1.25, 0.0, 5),
        (10, 41, 1.25, 0.0, 6),  # 5.125, rounded up
        (100, 7, 1.0, 0.0, 7),  # 0.07 * 100 is a hair over 7
        (100, 7, 1.0, 0.55, 55),  # 0.55 * 100 a hair over 55
        (10, 5, 1.25, 0.55, 6),  # 5.5, rounded up
        (10, 80, 1.0, 0.6, 8),  # more than the floor
        (10, 95, 2.0, 0.6, 10),  # never more than there are
    ],
)
def test_groups_that_pass_the_tower(groups, kept, margin, floor, expected):
    assert passing(groups, kept, 100, margin, floor) == expected
