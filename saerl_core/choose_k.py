"""How many clusters: the most whose borders do not depend on which half of the prompts was looked at.

For each k of a geometric grid, two k-means runs see one random half of the prompts each, and both then cluster all of
them. Their adjusted mutual information (Vinh et al. 2010, JMLR 11) is the stability of k (Lange et al. 2004, Neural
Computation 16; von Luxburg 2010, arXiv 1007.1075): 1 where both halves find the same clusters, 0 where they agree no
more than by chance. Several splits give each k a standard error. Of the k that are as stable as the best one, within
one standard error of it, the largest wins: a batch is the more diverse the finer the clusters. The grid begins at 8:
coarse splits are often perfectly stable, but a batch drawn from several of two or three clusters is drawn from all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saerl_core.config import ClustersConfig
from saerl_core.kmeans import assign, fit

_FEWEST = 8
_SPLITS = 3
_ROWS = 10_000
"""The curve is measured on at most this many prompts."""
_ITERATIONS = 10
_ROWS_PER_CLUSTER = 16
"""No k is considered that leaves a half fewer prompts a cluster than this."""


@dataclass(frozen=True)
class Stability:
    """What halves of the data say of one k."""

    k: int
    mean: float
    """adjusted mutual information, mean over the splits"""
    error: float
    """its standard error"""


@dataclass(frozen=True)
class Choice:
    """A chosen number of clusters, and the curve that it was read from."""

    k: int
    curve: list[Stability]


def choose_k(vectors: np.ndarray, config: ClustersConfig,
             progress: Callable[[int, int], None] | None = None) -> Choice:
    """Choose the number of clusters by stability.

    Args:
        vectors: float32 [n, dims] of unit length.
        config: `max_k`, restarts and seed. k-means has few iterations here.
        progress: Called with the numbers of clusters (tried, to try).

    Returns:
        k = 8 and an empty curve where there are too few prompts to judge (fewer than 256).
    """
    rng = np.random.default_rng([config.seed, 1])
    vectors = vectors[rng.permutation(len(vectors))[:_ROWS]]
    config = config.model_copy(update={"iterations": min(config.iterations, _ITERATIONS)})
    splits = [rng.permutation(len(vectors)) for _ in range(_SPLITS)]
    curve, candidates = [], grid(len(vectors), config.max_k)
    for k in candidates:
        curve.append(_stability(vectors, k, splits, config))
        if progress:
            progress(len(curve), len(candidates))
    return Choice(most_stable(curve) if curve else _FEWEST, curve)


def grid(n: int, most: int) -> list[int]:
    """8, 11, 16, 23, 32, ...: steps of sqrt(2), up to `most` and to what n prompts can support."""
    limit = min(most, n // (2 * _ROWS_PER_CLUSTER))
    steps = (round(_FEWEST * 2 ** (power / 2)) for power in range(2 * max(limit, 1).bit_length()))
    return [k for k in steps if k <= limit]


def most_stable(curve: list[Stability]) -> int:
    """The largest k within one standard error of the best."""
    best = max(curve, key=lambda entry: entry.mean)
    return max(entry.k for entry in curve if entry.mean >= best.mean - best.error)


def _stability(vectors: np.ndarray, k: int, splits: list[np.ndarray], config: ClustersConfig) -> Stability:
    from sklearn.metrics import adjusted_mutual_info_score  # more than a second to import

    agreement = []
    for number, order in enumerate(splits):
        halves = np.split(order, [len(order) // 2])
        labels = [assign(vectors, fit(vectors[half], k, config, config.seed + number)[0])[0]
                  for half in halves]
        agreement.append(adjusted_mutual_info_score(*labels))
    return Stability(k, round(float(np.mean(agreement)), 6),
                     round(float(np.std(agreement, ddof=1) / np.sqrt(len(agreement))), 6))
