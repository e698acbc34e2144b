"""Diversity: spherical k-means over what the SAE sees, and cards that say what a cluster is.

A prompt's row of means is square-rooted, weighted by inverse document frequency, hashed with signs into a few hundred
dimensions (a count-sketch, which keeps inner products in expectation: Weinberger et al. 2009, arXiv 0902.2206) and
scaled to length 1. There k-means runs, with cosine as its measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import scipy.sparse as sp

from saerl_core.config import ClustersConfig
from saerl_core.features import FeatureRows, take

VERSION = 1
_CARD_FEATURES = 6
_CARD_PROMPTS = 4


@dataclass(frozen=True)
class Clusters:
    """A clustering of n prompts into k clusters."""

    labels: np.ndarray
    """int32 [n]"""
    similarity: np.ndarray
    """float32 [n], cosine to the own centroid"""
    centroids: np.ndarray
    """float32 [k, dims], unit length"""
    idf: np.ndarray
    """float32 [d_sae], the weights with which new prompts are assigned to these centroids"""
    iterations: int
    """k-means iterations of the best run; FAISS stops early when the objective stands still"""


@dataclass(frozen=True)
class ClusterCard:
    """What a person needs to see in order to tell what a cluster is."""

    cluster: int
    size: int
    features: list[tuple[int, float]]
    """(feature, lift): how much more often it fires here than over all prompts"""
    nearest: list[int]
    """row numbers of the prompts nearest to the centroid"""


def inverse_document_frequency(rows: FeatureRows) -> np.ndarray:
    """float32 [d_sae]: log((1 + n) / (1 + df)), 0 for a feature that fires everywhere."""
    frequency = np.bincount(rows.indices, minlength=rows.d_sae)
    return np.log((1 + len(rows)) / (1 + frequency)).astype(np.float32)


def sketch(rows: FeatureRows, idf: np.ndarray, dims: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [n, dims]; a row that fires nothing stays 0."""
    rng = np.random.default_rng(seed)
    bucket = rng.integers(0, dims, rows.d_sae)
    sign = rng.choice(np.array([-1, 1], dtype=np.float32), rows.d_sae)
    weighted = sp.csr_array((np.sqrt(rows.mean) * idf[rows.indices], rows.indices, rows.indptr),
                            shape=(len(rows), rows.d_sae))
    hashing = sp.csr_array((sign, (np.arange(rows.d_sae), bucket)), shape=(rows.d_sae, dims))
    product: Any = weighted @ hashing
    vectors = product.toarray().astype(np.float32, copy=False)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def cluster(rows: FeatureRows, config: ClustersConfig) -> Clusters:
    """Cluster prompts by their features.

    Args:
        rows: Feature rows of n prompts. `k` is lowered to n where there are fewer prompts than clusters.
        config: Number of clusters, sketch width, k-means settings.
    """
    idf = inverse_document_frequency(rows) if config.idf else np.ones(rows.d_sae, dtype=np.float32)
    vectors = sketch(rows, idf, config.dims, config.seed)
    k = min(config.k, len(rows))
    kmeans = faiss.Kmeans(config.dims, k, niter=config.iterations, nredo=config.restarts, spherical=True,
                          seed=config.seed + 1, min_points_per_centroid=1, max_points_per_centroid=1024)
    kmeans.train(vectors)
    centroids = np.asarray(kmeans.centroids, dtype=np.float32).reshape(k, config.dims)
    labels, similarity = assign(vectors, centroids)
    steps = kmeans.iteration_stats or []
    return Clusters(labels, similarity, centroids, idf, iterations=len(steps) // config.restarts)


def assign(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid by cosine: (labels int32 [n], similarity float32 [n])."""
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)  # type: ignore[call-arg]  # faiss patches the SWIG signature at import
    similarity, labels = index.search(vectors, 1)  # type: ignore[call-arg]
    return labels[:, 0].astype(np.int32), similarity[:, 0].astype(np.float32)


def cards(rows: FeatureRows, clusters: Clusters) -> list[ClusterCard]:
    """A card for each cluster, in the order of their numbers."""
    overall = np.bincount(rows.indices, minlength=rows.d_sae) / len(rows)
    made = []
    for number in range(len(clusters.centroids)):
        members = np.flatnonzero(clusters.labels == number)
        if not len(members):
            made.append(ClusterCard(number, 0, [], []))
            continue
        share = np.bincount(take(rows, members).indices, minlength=rows.d_sae) / len(members)
        # a feature must be common here, or lift favours the rarest accident
        lift = np.where(share >= 0.2, share / np.maximum(overall, 1e-9), 0.0)
        top = np.argsort(-lift, kind="stable")[:_CARD_FEATURES]
        nearest = members[np.argsort(-clusters.similarity[members], kind="stable")[:_CARD_PROMPTS]]
        made.append(ClusterCard(number, len(members), [(int(f), round(float(lift[f]), 3)) for f in top if lift[f] > 0],
                                [int(row) for row in nearest]))
    return made
