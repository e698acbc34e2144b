"""Fewer prompts that still cover what the SAE sees: greedy selection of a budget, inside clusters.

Two submodular measures of a selection S, on the sketch vectors x of length 1 and their cosines c:

- facility location: for every prompt, the cosine to the nearest prompt of S, summed. Chosen by lazy greedy (Minoux
  1978), which picks what plain greedy picks, at least 1 - 1/e of the optimum (Nemhauser et al. 1978);
- log-det: log det(1 + c_S / 0.1), the information in S when each prompt is seen with noise of variance 0.1. Chosen by
  the fast greedy MAP inference of Chen et al. 2018 (arXiv 1709.05135).

Each cluster keeps its share of the budget. A large cluster is split by lot into parts, each with its own share
(Mirzasoleiman et al. 2013, arXiv 1311.1640), so that cost grows with the number of prompts, not with its square.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from saerl_core.apportion import apportion
from saerl_core.clusters import Codebook, sketch
from saerl_core.config import CoverageConfig
from saerl_core.features import FeatureRows, take

VERSION = 1
_PART = 1024
_NOISE = 0.1


def select(rows: FeatureRows, clusters: np.ndarray, codebook: Codebook, candidates: np.ndarray,
           config: CoverageConfig, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Choose `budget` of the candidates.

    Args:
        rows: Feature rows of n prompts.
        clusters: int [n].
        codebook: Whose sketch is used.
        candidates: int [m], row numbers to choose from.
        config: Budget and method; no budget, or one of m and more, keeps all.
        progress: Called with (candidates seen, m).

    Returns:
        int64 [min(budget, m)], row numbers, ascending.
    """
    if config.budget is None or config.budget >= len(candidates):
        return np.sort(candidates)
    parts = _parts(candidates, clusters, config.seed)
    quotas = apportion(config.budget, np.array([len(part) for part in parts]))
    greedy = {"facility_location": facility_location, "log_det": log_det}[config.method]
    chosen, seen = [], 0
    for part, quota in zip(parts, quotas, strict=True):
        if quota:
            vectors = sketch(take(rows, part), codebook.idf, codebook.centroids.shape[1], codebook.sketch_seed)
            chosen.append(part[greedy(vectors, int(quota))])
        seen += len(part)
        if progress:
            progress(seen, len(candidates))
    return np.sort(np.concatenate(chosen))


def _parts(candidates: np.ndarray, clusters: np.ndarray, seed: int) -> list[np.ndarray]:
    """The candidates of each cluster, in equal parts of at most `_PART`."""
    lot = np.random.default_rng(seed).permutation(len(candidates))
    own = clusters[candidates]
    by_cluster = candidates[np.lexsort((lot, own))]
    borders = np.cumsum(np.unique(own, return_counts=True)[1])[:-1]
    return [part for members in np.split(by_cluster, borders)
            for part in np.array_split(members, -(-len(members) // _PART))]


def facility_location(vectors: np.ndarray, count: int) -> np.ndarray:
    """Rows in the order in which lazy greedy takes them: int64 [count].

    Args:
        vectors: float32 [m, dims] of unit length.
        count: At most m. Negative cosines count as 0.
    """
    similarity = np.maximum(vectors @ vectors.T, 0)
    covered = np.zeros(len(vectors), dtype=similarity.dtype)
    queue = [(-float(gain), row) for row, gain in enumerate(similarity.sum(axis=1, dtype=np.float64))]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count:
        _, row = heapq.heappop(queue)
        # a gain only ever shrinks: whoever still leads after its gain is brought up to date is the best
        gain = float(np.maximum(similarity[row] - covered, 0).sum(dtype=np.float64))
        if queue and (-gain, row) > queue[0]:
            heapq.heappush(queue, (-gain, row))
        else:
            chosen.append(row)
            covered = np.maximum(covered, similarity[row])
    return np.array(chosen, dtype=np.int64)


def log_det(vectors: np.ndarray, count: int) -> np.ndarray:
    """Rows in the order in which greedy MAP inference takes them: int64 [count].

    Args:
        vectors: float32 [m, dims] of unit length.
        count: At most m.
    """
    kernel = vectors.astype(np.float64)
    kernel = kernel @ kernel.T / _NOISE + np.eye(len(vectors))
    gain = np.diag(kernel).copy()  # det(S and row) / det(S)
    factor = np.zeros((count, len(vectors)))  # rows of the Cholesky factor, all columns at once
    chosen: list[int] = []
    for step in range(count):
        row = int(np.argmax(gain))
        chosen.append(row)
        factor[step] = (kernel[row] - factor[:step, row] @ factor[:step]) / np.sqrt(gain[row])
        gain -= factor[step] ** 2
        gain[row] = -np.inf
    return np.array(chosen, dtype=np.int64)
