"""Bootstrap intervals over items, in percent. Seeded: the same items give the same interval on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ptprune.results.rows import AccuracyRow, Gain

RESAMPLES = 2000
SEED = 0


@lru_cache(maxsize=2)
def resampling(items: int) -> np.ndarray:
    """How often each item is drawn in each resample: float32 [RESAMPLES, items], rows sum to ``items``.

    All methods meet the same resamples, which is what makes comparisons paired.
    """
    generator = np.random.default_rng(SEED)
    counts = np.empty((RESAMPLES, items), np.float32)
    for resample in range(RESAMPLES):
        counts[resample] = np.bincount(generator.integers(items, size=items), minlength=items)
    return counts


def decode(right: str) -> np.ndarray:
    """A row's digits as marks, True for a right item: bool [items]."""
    return np.array(list(right)) == "1"


def marks_of(row: AccuracyRow) -> np.ndarray:
    """What a row's answers count, from 0 to 1: [items]."""
    return decode(row.right).astype(np.float64) if row.marks is None else np.array(row.marks)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of a mean, in percent.

    Args:
        values: [items], from 0 to 1, or differences of such.
    """
    sums = resampling(len(values)) @ values.astype(np.float32)  # exact where they are whole numbers
    low, high = np.percentile(100 * sums.astype(np.float64) / len(values), [2.5, 97.5])
    return float(low), float(high)


def mean(values: np.ndarray) -> float:
    """The mean in percent."""
    return 100 * float(values.sum()) / len(values)


def difference(values: np.ndarray, reference: np.ndarray) -> Gain:
    """The gain of one method over another on the same items: the mean difference and its 95% interval.

    Args:
        values, reference: [items], from 0 to 1.
    """
    gain = values.astype(np.float64) - reference.astype(np.float64)
    low, high = interval(gain)
    return Gain(difference=round(mean(gain), 2), low=round(low, 2), high=round(high, 2))
