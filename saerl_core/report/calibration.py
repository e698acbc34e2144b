"""Predictions against what was measured: equal-width bins, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BINS = 10
_Z = 1.96


@dataclass(frozen=True)
class Bin:
    """The prompts whose prediction lies in [start, end)."""

    start: float
    end: float
    count: int
    predicted: float
    """mean prediction"""
    measured: float
    """mean of what was measured"""
    low: float
    high: float
    """95% interval of `measured`"""


def bins(predicted: np.ndarray, measured: np.ndarray) -> list[Bin]:
    """Ten bins of equal width over [0, 1]; those that hold no prompt are left out.

    The interval is Wilson's (1927, JASA 22). For shares in place of zeros and ones it is too wide rather than too
    narrow: a mean m of values in [0, 1] has no more variance than m(1 − m).

    Args:
        predicted: float [n] in [0, 1].
        measured: float [n] in [0, 1].
    """
    number = np.clip((predicted * _BINS).astype(int), 0, _BINS - 1)
    made = []
    for i in np.unique(number):
        own = number == i
        n, mean = int(own.sum()), float(measured[own].mean())
        centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        reach = _Z * np.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        made.append(Bin(i / _BINS, (i + 1) / _BINS, n, float(predicted[own].mean()), mean,
                        max(0.0, float(centre - reach)), min(1.0, float(centre + reach))))
    return made


def expected_error(bins: list[Bin]) -> float:
    """Expected calibration error (Naeini et al. 2015, AAAI): mean distance of both means, weighted by prompts."""
    return sum(found.count * abs(found.predicted - found.measured) for found in bins) / sum(
        found.count for found in bins)
