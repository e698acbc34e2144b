"""Old centroids, new prompts: how far these have drifted from those, and how the centroids follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import rel_entr

from saerl_core.clusters import Clusters, Codebook, assign_rows, cluster, sketch
from saerl_core.config import ClustersConfig
from saerl_core.features import FeatureRows, take
from saerl_core.kmeans import assign

_MINI_BATCH = 1024


@dataclass(frozen=True)
class Drift:
    """How much worse clusters fit these prompts than those on which they were fitted."""

    similarity_at_fit: float
    """mean cosine to the nearest centroid, when the centroids were fitted"""
    similarity: float
    """the same, of these prompts"""
    similarity_drop: float
    """relative fall of the mean similarity; 0 where it rose"""
    share_divergence: float
    """Jensen-Shannon divergence (base 2, in [0, 1]) between the clusters' shares then and now"""

    @property
    def largest(self) -> float:
        """The figure that `clusters.max_drift` bounds."""
        return max(self.similarity_drop, self.share_divergence)


def measure(codebook: Codebook, labels: np.ndarray, similarity: np.ndarray) -> Drift:
    """Drift of prompts that were assigned to a codebook's centroids.

    Both figures compare with the fit, not with the last run, so that slow drift adds up and is noticed.

    Args:
        codebook: The centroids, with their figures at fit time.
        labels: int [n], nearest centroid of each prompt.
        similarity: float [n], cosine to it.
    """
    now = float(similarity.mean(dtype=np.float64))
    drop = max(0.0, 1 - now / codebook.similarity) if codebook.similarity > 0 else 0.0
    divergence = jensen_shannon(codebook.sizes, np.bincount(labels, minlength=len(codebook.sizes)))
    return Drift(*(round(value, 6) for value in (codebook.similarity, now, drop, divergence)))


def jensen_shannon(these: np.ndarray, those: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms, base 2: 0 alike, 1 disjoint (Lin 1991, IEEE Trans. Inf. Theory)."""
    p, q = these / these.sum(), those / those.sum()
    middle = (p + q) / 2
    return max(0.0, float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / (2 * np.log(2)))


def recluster(rows: FeatureRows, codebook: Codebook, config: ClustersConfig,
              progress: Callable[[int, int], None] | None = None) -> tuple[Clusters, Drift]:
    """Keep a previous run's clusters where that is fair; else cluster anew.

    Args:
        rows: Feature rows of the prompts, of the same reader and SAE.
        codebook: The previous clusters. Their numbers stay, if they are kept.
        config: When to refit, and by how many mini-batches kept centroids follow.
        progress: See `clusters.cluster`.

    Returns:
        The clusters, and the drift of the prompts from the previous ones before these moved. A codebook that is kept
        keeps its figures at fit time.
    """
    labels, similarity = assign_rows(rows, codebook.centroids, codebook.idf, codebook.sketch_seed)
    drift = measure(codebook, labels, similarity)
    if config.refit == "always" or (config.refit == "on_drift" and drift.largest > config.max_drift):
        return cluster(rows, config, progress), drift
    if config.mini_batch_steps:
        codebook = replace(codebook, centroids=follow(rows, codebook, config.mini_batch_steps, config.seed))
        labels, similarity = assign_rows(rows, codebook.centroids, codebook.idf, codebook.sketch_seed)
    return Clusters(labels, similarity, codebook, iterations=0), drift


def follow(rows: FeatureRows, codebook: Codebook, steps: int, seed: int) -> np.ndarray:
    """Centroids after mini-batch k-means (Sculley 2010, WWW), scaled back to length 1 after each step.

    Sculley's rate for the m-th prompt of a cluster is 1/m, which makes the centroid a running mean: so a batch moves
    it in one sum. Counting begins at the sizes at fit time, and a cluster of many prompts moves slowly.
    """
    rng = np.random.default_rng([seed, 2])
    centroids, count = codebook.centroids.copy(), codebook.sizes.astype(np.float64)
    for _ in range(steps):
        batch = rng.choice(len(rows), min(_MINI_BATCH, len(rows)), replace=False)
        vectors = sketch(take(rows, np.sort(batch)), codebook.idf, centroids.shape[1], codebook.sketch_seed)
        labels, _ = assign(vectors, centroids)
        moved = centroids * count[:, None]
        np.add.at(moved, labels, vectors)
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        centroids = np.divide(moved, norms, out=centroids.astype(np.float64), where=norms > 0).astype(np.float32)
        count += np.bincount(labels, minlength=len(count))
    return centroids
