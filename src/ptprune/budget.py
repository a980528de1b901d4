"""Exact integer budgets: how many tokens each region may keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ptprune.errors import Refused


def allocate(weights: Sequence[float], capacities: Sequence[int], total: int) -> list[int]:
    """Split ``total`` tokens across regions in proportion to weight * capacity.

    Regions are capped at their capacity and the excess is redistributed (water-filling). Fractions are rounded by
    largest remainder; ties go to the lower index. If all remaining weights are zero, the split is by capacity. The
    arithmetic is exact, so that no token is lost and every machine gives the same budgets.

    Args:
        weights: one non-negative finite number a region.
        capacities: tokens each region has.
        total: tokens to share, between 0 and ``sum(capacities)``.

    Returns:
        One budget a region. They sum to ``total``, respect the capacities, and do not decrease with the weight among
        regions of equal capacity.

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

    budgets, remainders = _water_fill(_whole(weights), capacities, total)
    by_remainder = sorted(range(len(budgets)), key=lambda i: (-remainders[i], i))
    for index in by_remainder[: total - sum(budgets)]:
        budgets[index] += 1
    return budgets


def allocate_beside(
    own: int, place: int | None, weights: Sequence[float], capacities: Sequence[int], total: int
) -> list[int]:
    """Like ``allocate``, but the region at index ``place``, if any, gets ``own`` tokens and the others split the rest.

    It is capped at its capacity, but takes the excess that does not fit into the others.

    Args:
        weights: one a region, without that at ``place``.
    """
    if place is None:
        return allocate(weights, capacities, total)
    others = [*capacities[:place], *capacities[place + 1 :]]
    own = min(max(own, total - sum(others)), total, capacities[place])
    budgets = allocate(weights, others, total - own)
    return [*budgets[:place], own, *budgets[place:]]


def _whole(weights: Sequence[float]) -> list[int]:
    """The weights times one power of two that makes them all whole: as exact as fractions, and many times faster."""
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    common = max((below for _, below in ratios), default=1)
    return [above * (common // below) for above, below in ratios]


def _water_fill(weights: list[int], capacities: Sequence[int], total: int) -> tuple[list[int], list[int]]:
    """Shares proportional to weight * capacity, capped, with the excess redistributed: rounded down, and what was lost
    by that, all in the same fraction of a token."""
    shares, lost, left = [0] * len(weights), [0] * len(weights), total
    active = [i for i, capacity in enumerate(capacities) if capacity]
    while active and left:
        if not any(weights[i] for i in active):
            weights = [1] * len(weights)
        mass = sum(weights[i] * capacities[i] for i in active)
        full = {i for i in active if left * weights[i] >= mass}  # left * w * capacity / mass >= capacity
        if not full:
            for i in active:
                shares[i], lost[i] = divmod(left * weights[i] * capacities[i], mass)
            break
        for i in full:
            shares[i] = capacities[i]
            left -= capacities[i]
        active = [i for i in active if i not in full]
    return shares, lost


def passing(groups: int, kept: int, tokens: int, margin: float, floor: float) -> int:
    """How many of an encoded tile's token groups pass the layer of the tower before which patches are dropped.

    Args:
        groups: of the tile.
        kept: tokens of the picture that stay in the end.
        tokens: of all the picture's tiles that are encoded.
        margin, floor: ``vision_margin`` and ``vision_floor`` of ``EncoderSettings``.
    """
    share = min(1.0, max(floor, kept / tokens * margin))
    return math.ceil(share * groups - 1e-9)  # a hair below, else rounding of the product asks for one group more


def halfway(layer: int, num_layers: int) -> int:
    """The layer of PTP's second cut: halfway from the first to the end of the language model."""
    return (layer + num_layers) // 2
