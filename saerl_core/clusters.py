"""Diversity: spherical k-means over what the SAE sees, and cards that say what a cluster is.

A prompt's row of means is square-rooted, weighted (by inverse document frequency, unless told otherwise), hashed with
signs into a few hundred dimensions (a count-sketch, which keeps inner products in expectation: Weinberger et al. 2009,
arXiv 0902.2206) and scaled to length 1. There k-means runs, with cosine as its measure: trained on a sample where there
are many prompts, in two levels where there are many clusters. Rows pass through in blocks, so that memory grows with
the rows' own size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import scipy.sparse as sp

from saerl_core.choose_k import Choice, choose_k
from saerl_core.config import ClustersConfig
from saerl_core.errors import ArtifactError
from saerl_core.features import FeatureRows, blocks, take
from saerl_core.kmeans import assign, fit

VERSION = 3
_CARD_FEATURES = 6
_CARD_PROMPTS = 4
_LEAST_VARIANCE = 1e-6
_TRAINING_ROWS = 32_768
_ROWS_PER_CENTROID = 256
"""k-means is trained on at most this many prompts: the larger of the two."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Codebook:
    """What it takes to say in which cluster a prompt is, and whether that is still fair."""

    centroids: np.ndarray
    """float32 [k, dims], unit length"""
    idf: np.ndarray
    """float32 [d_sae], weights of the features (`clusters.weights`)"""
    sketch_seed: int
    """seed of the count-sketch"""
    sizes: np.ndarray
    """int64 [k], prompts of each cluster when the centroids were fitted"""
    similarity: float
    """mean cosine of these prompts to their centroid"""


@dataclass(frozen=True)
class Clusters:
    """A clustering of n prompts into k clusters."""

    labels: np.ndarray
    """int32 [n]"""
    similarity: np.ndarray
    """float32 [n], cosine to the own centroid"""
    codebook: Codebook
    iterations: int
    """of k-means, which stops early where it stands still; restarts up to the best included. 0: kept clusters"""
    choice: Choice | None = None
    """how k was chosen, if it was"""


@dataclass(frozen=True)
class ClusterCard:
    """What a person needs to see in order to tell what a cluster is."""

    cluster: int
    size: int
    features: list[tuple[int, float]]
    """(feature, lift): how much more often it fires here than over all prompts"""
    nearest: list[int]
    """row numbers of the prompts nearest to the centroid"""


def codebook_bytes(codebook: Codebook) -> bytes:
    """A codebook as the bytes of one safetensors file."""
    return safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in vars(codebook).items()})


def read_codebook(path: Path) -> Codebook:
    """Read what `codebook_bytes` made.

    Raises:
        ArtifactError: the file is not such a file.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
        return Codebook(arrays["centroids"], arrays["idf"], int(arrays["sketch_seed"].item()), arrays["sizes"],
                        float(arrays["similarity"].item()))
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: not a file of clusters: {error}") from error


def document_frequency(rows: FeatureRows) -> np.ndarray:
    """int64 [d_sae], prompts on which each feature fires."""
    frequency = np.zeros(rows.d_sae, dtype=np.int64)
    for _, block in blocks(rows):
        frequency += np.bincount(block.indices, minlength=rows.d_sae)
    return frequency


def inverse_document_frequency(rows: FeatureRows) -> np.ndarray:
    """float32 [d_sae]: log((1 + n) / (1 + df)), 0 for a feature that fires everywhere."""
    return np.log((1 + len(rows)) / (1 + document_frequency(rows))).astype(np.float32)


def inverse_deviation(rows: FeatureRows) -> np.ndarray:
    """float32 [d_sae]: 1 / standard deviation of the square roots of the means; 0 for a feature that hardly varies."""
    mean, mean_square = np.zeros(rows.d_sae), np.zeros(rows.d_sae)
    for _, block in blocks(rows):
        mean += np.bincount(block.indices, np.sqrt(block.mean), minlength=rows.d_sae) / len(rows)
        mean_square += np.bincount(block.indices, block.mean, minlength=rows.d_sae) / len(rows)
    variance = mean_square - mean**2
    varies = variance > _LEAST_VARIANCE * mean_square  # less is noise of the arithmetic
    return np.divide(1, np.sqrt(np.maximum(variance, 0)), out=np.zeros(rows.d_sae), where=varies).astype(np.float32)


def feature_weights(rows: FeatureRows, config: ClustersConfig) -> np.ndarray:
    """float32 [d_sae]: what each feature counts."""
    match config.weights:
        case "idf":
            return inverse_document_frequency(rows)
        case "deviation":
            return inverse_deviation(rows)
        case "none":
            return np.ones(rows.d_sae, dtype=np.float32)


def weighted(rows: FeatureRows, idf: np.ndarray) -> sp.csr_array:
    """float32 CSR [n, d_sae]: square roots of the means, times idf."""
    return sp.csr_array((np.sqrt(rows.mean) * idf[rows.indices], rows.indices, rows.indptr),
                        shape=(len(rows), rows.d_sae))


def sketch(rows: FeatureRows, idf: np.ndarray, dims: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [n, dims]; a row that fires nothing stays 0."""
    rng = np.random.default_rng(seed)
    bucket = rng.integers(0, dims, rows.d_sae)
    sign = rng.choice(np.array([-1, 1], dtype=np.float32), rows.d_sae)
    hashing = sp.csr_array((sign, (np.arange(rows.d_sae), bucket)), shape=(rows.d_sae, dims))
    vectors = np.empty((len(rows), dims), dtype=np.float32)
    for part, block in blocks(rows):
        product: Any = weighted(block, idf) @ hashing
        vectors[part] = product.toarray()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=vectors, where=norms > 0)


def cluster(rows: FeatureRows, config: ClustersConfig,
            progress: Callable[[int, int], None] | None = None) -> Clusters:
    """Cluster prompts by their features.

    Args:
        rows: Feature rows of n prompts. `k` is lowered to n where there are fewer prompts than clusters.
        config: Number of clusters, sketch width, k-means settings.
        progress: Called with (done, total) while k is chosen, which takes longer than the clustering.
    """
    idf = feature_weights(rows, config)
    most = config.max_k if config.k == "auto" else config.k
    sampled = _sample(len(rows), max(_TRAINING_ROWS, _ROWS_PER_CENTROID * most), config.seed)
    vectors = sketch(rows if sampled is None else take(rows, sampled), idf, config.dims, config.seed)
    choice = choose_k(vectors, config, progress) if config.k == "auto" else None
    k = min(choice.k if choice else most, len(vectors))
    centroids, iterations = fit(vectors, k, config, config.seed + 1)
    logger.info("k-means: k = %d, %d of at most %d iterations", len(centroids), iterations, config.iterations)
    labels, similarity = assign_rows(rows, centroids, idf, config.seed)
    sizes = np.bincount(labels, minlength=len(centroids))
    codebook = Codebook(centroids, idf, config.seed, sizes, float(similarity.mean(dtype=np.float64)))
    return Clusters(labels, similarity, codebook, iterations, choice)


def _sample(n: int, count: int, seed: int) -> np.ndarray | None:
    """Rows to train on, ascending; None for all."""
    return None if n <= count else np.sort(np.random.default_rng(seed).choice(n, count, replace=False))


def assign_rows(rows: FeatureRows, centroids: np.ndarray, idf: np.ndarray,
                seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid of each prompt: (labels int32 [n], cosine float32 [n]). idf and seed are the codebook's."""
    labels, similarity = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.float32)
    for part, block in blocks(rows):
        labels[part], similarity[part] = assign(sketch(block, idf, centroids.shape[1], seed), centroids)
    return labels, similarity


def cards(rows: FeatureRows, clusters: Clusters) -> list[ClusterCard]:
    """A card for each cluster, in the order of their numbers."""
    overall = document_frequency(rows) / len(rows)
    k = len(clusters.codebook.centroids)
    by_cluster = np.lexsort((-clusters.similarity, clusters.labels))  # within a cluster: nearest first
    made = []
    for number, members in enumerate(np.split(by_cluster, np.searchsorted(clusters.labels[by_cluster], range(1, k)))):
        if not len(members):
            made.append(ClusterCard(number, 0, [], []))
            continue
        share = np.bincount(take(rows, members).indices, minlength=rows.d_sae) / len(members)
        common = np.flatnonzero(share >= 0.2)  # or lift favours the rarest accident
        lift = share[common] / overall[common]
        top = np.argsort(-lift, kind="stable")[:_CARD_FEATURES]
        made.append(ClusterCard(number, len(members), [(int(common[i]), round(float(lift[i]), 3)) for i in top],
                                [int(row) for row in members[:_CARD_PROMPTS]]))
    return made
