"""Dividing a whole number among parties in proportion, by the largest remainder (Hamilton's method)."""

from __future__ import annotations

import numpy as np


def apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to `total` and differ from exact proportion by less than 1.

    Args:
        total: What is divided.
        weights: float or int [k], not negative, not all 0. Equal remainders: who comes first goes first.

    Returns:
        int64 [k].
    """
    exact = np.round(weights * (total / weights.sum()), 9)  # so that no tie is decided by the noise of a float
    quota = np.floor(exact).astype(np.int64)
    short = total - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:short]] += 1
    return quota
