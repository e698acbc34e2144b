"""A small labelled subset: which prompts to label, spread over the clusters."""

from __future__ import annotations

import numpy as np

VERSION = 1


def choose(clusters: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows to label: a stratified sample, every cluster in proportion to its size.

    Args:
        clusters: int [n], cluster of each prompt.
        count: Rows wanted; all rows where there are fewer.
        seed: Seed of the choice.

    Returns:
        int64 [min(count, n)], ascending. Cluster shares are exact up to rounding (largest remainder).
    """
    n = len(clusters)
    count = min(count, n)
    numbers, sizes = np.unique(clusters, return_counts=True)
    exact = sizes * count / n
    quota = np.floor(exact).astype(int)
    most_short = np.argsort(-(exact - quota), kind="stable")[: count - quota.sum()]
    quota[most_short] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(np.flatnonzero(clusters == number), size, replace=False)
              for number, size in zip(numbers, quota, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
