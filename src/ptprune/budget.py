"""Exact integer budgets: how many tokens each region may keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from ptprune.errors import Refused


def allocate(weights: Sequence[float], capacities: Sequence[int], total: int) -> list[int]:
    """Share ``total`` tokens among regions in proportion to weight times capacity, exactly.

    A region never gets more than its capacity; what a full region cannot take goes to the others in proportion
    (water-filling), then whole numbers are made by largest remainder, ties by index. Where all weights that are left
    are zero, their capacities alone decide. Fractions keep the arithmetic exact, so no rounding can lose a token and
    every machine gives the same budgets.

    Args:
        weights: one non-negative finite number a region.
        capacities: tokens each region has.
        total: tokens to share, between 0 and ``sum(capacities)``.

    Returns:
        One budget a region: sums to ``total``, each within its capacity, and, among regions of equal capacity,
        never smaller for a larger weight.

    Raises:
        Refused: on lengths that differ, a bad weight or a total that cannot be shared.
    """
    if len(weights) != len(capacities):
        raise Refused(f"one weight a region: got {len(weights)} weights for {len(capacities)} regions")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise Refused(f"weights must be finite and not negative, got {list(weights)}")
    if any(capacity < 0 for capacity in capacities):
        raise Refused(f"capacities must not be negative, got {list(capacities)}")
    if not 0 <= total <= sum(capacities):
        raise Refused(f"total must be between 0 and {sum(capacities)}, got {total}")

    shares = _water_fill([Fraction(weight) for weight in weights], list(capacities), total)
    budgets = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (budgets[i] - shares[i], i))
    for index in by_remainder[: total - sum(budgets)]:
        budgets[index] += 1
    return budgets


def _water_fill(weights: list[Fraction], capacities: list[int], total: int) -> list[Fraction]:
    """Fractional shares: proportional to weight times capacity, capped, the excess handed on."""
    shares = [Fraction(0)] * len(weights)
    left = Fraction(total)
    active = [i for i, capacity in enumerate(capacities) if capacity]
    while active and left:
        if not any(weights[i] for i in active):
            weights = [Fraction(1)] * len(weights)
        mass = sum(weights[i] * capacities[i] for i in active)
        full = [i for i in active if left * weights[i] >= mass]  # left * w * capacity / mass >= capacity
        if not full:
            for i in active:
                shares[i] = left * weights[i] * capacities[i] / mass
            break
        for i in full:
            shares[i] = Fraction(capacities[i])
        left -= sum(capacities[i] for i in full)
        active = [i for i in active if i not in full]
    return shares
