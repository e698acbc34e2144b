"""Spherical k-means on unit vectors: fitted with FAISS, assigned by cosine, moved by mini-batches."""

from __future__ import annotations

import faiss
import numpy as np

from saerl_core.apportion import apportion
from saerl_core.config import ClustersConfig

_MENDING = 5
"""Iterations with all clusters after the second level."""


def fit(vectors: np.ndarray, k: int, config: ClustersConfig, seed: int) -> tuple[np.ndarray, int]:
    """Fit centroids; where k exceeds `two_level_above`, in two levels.

    Two levels: about sqrt(k) clusters, each divided in proportion to its size, then a few iterations with all k, which
    mend what the first level has cut apart.

    Args:
        vectors: float32 [n, dims] of unit length (or 0).
        k: Number of clusters, at most n.
        config: Iterations, restarts, threshold of the second level.
        seed: Seed of the initial centroids.

    Returns:
        Centroids, float32 [k, dims] of unit length, and the iterations of k-means, restarts up to the best included.
        On two levels, those of the first.
    """
    if k <= config.two_level_above:
        return _lloyd(vectors, k, config, seed)
    top, iterations = _lloyd(vectors, int(np.ceil(np.sqrt(k))), config, seed)
    group, _ = assign(vectors, top)
    size = np.bincount(group, minlength=len(top))
    quota = np.minimum(apportion(k - int(np.count_nonzero(size)), size) + (size > 0), size)
    below = [_lloyd(vectors[group == number], int(quota[number]), config, seed)[0] for number in np.flatnonzero(quota)]
    start = np.concatenate(below)
    few = config.model_copy(update={"iterations": _MENDING, "restarts": 1})
    return _lloyd(vectors, len(start), few, seed, start)[0], iterations


def _lloyd(vectors: np.ndarray, k: int, config: ClustersConfig, seed: int,
           start: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    run = faiss.Kmeans(vectors.shape[1], k, niter=config.iterations, nredo=config.restarts, spherical=True, seed=seed,
                       min_points_per_centroid=1, max_points_per_centroid=len(vectors))
    run.train(vectors, init_centroids=start)
    steps = run.iteration_stats or []
    centroids = np.asarray(run.centroids, dtype=np.float32).reshape(k, vectors.shape[1])
    return centroids, max(1, len(steps))


def assign(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid by cosine: (labels int32 [n], similarity float32 [n])."""
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)  # type: ignore[call-arg]  # faiss patches the SWIG signature at import
    similarity, labels = index.search(vectors, 1)  # type: ignore[call-arg]
    return labels[:, 0].astype(np.int32), similarity[:, 0].astype(np.float32)
