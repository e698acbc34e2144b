from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import normalized_mutual_info_score

from saerl_core import clusters
from saerl_core.config import ClustersConfig
from saerl_core.features import FeatureRows
from tests.core.rows import planted_rows, rows_from_dense


def test_planted_clusters_are_found_beneath_a_common_background() -> None:
    rows, truth = planted_rows(n=1200, k=8, d_sae=2048)
    found = clusters.cluster(rows, ClustersConfig(k=8, dims=256))
    assert normalized_mutual_info_score(truth, found.labels) > 0.95


def test_agrees_with_exact_sparse_spherical_kmeans_as_well_as_it_agrees_with_itself() -> None:
    rows, truth = planted_rows(n=1200, k=8, d_sae=2048)
    found = clusters.cluster(rows, ClustersConfig(k=8, dims=256))
    exact = _exact_spherical_kmeans(rows, 8)
    ours = normalized_mutual_info_score(truth, found.labels)
    assert ours >= 0.95 * normalized_mutual_info_score(truth, exact)


def _exact_spherical_kmeans(rows: FeatureRows, k: int) -> np.ndarray:
    """An independent computation: Lloyd's algorithm on the full sparse vectors, best of five starts."""
    idf = clusters.inverse_document_frequency(rows)
    x = sp.csr_array((np.sqrt(rows.mean) * idf[rows.indices], rows.indices, rows.indptr), shape=(len(rows), rows.d_sae))
    x = x.toarray()
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-9
    best, best_score = np.zeros(len(x), int), -1.0
    for start in range(5):
        centroids = x[np.random.default_rng(start).choice(len(x), k, replace=False)]
        for _ in range(15):
            labels = (x @ centroids.T).argmax(1)
            centroids = np.stack([x[labels == c].sum(0) if (labels == c).any() else centroids[c] for c in range(k)])
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True) + 1e-9
        score = float((x @ centroids.T).max(1).sum())
        if score > best_score:
            best, best_score = (x @ centroids.T).argmax(1), score
    return best


def test_the_sketch_keeps_cosines() -> None:
    rows, _ = planted_rows(n=200, k=4, d_sae=4096)
    idf = clusters.inverse_document_frequency(rows)
    exact = sp.csr_array((np.sqrt(rows.mean) * idf[rows.indices], rows.indices, rows.indptr),
                         shape=(200, rows.d_sae)).toarray()
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    vectors = clusters.sketch(rows, idf, 2048, seed=0)
    assert np.abs(exact @ exact.T - vectors @ vectors.T).mean() < 0.03


def test_the_same_seed_gives_the_same_bytes() -> None:
    rows, _ = planted_rows(n=300, k=4, d_sae=512)
    once, twice = (clusters.cluster(rows, ClustersConfig(k=6, dims=64)) for _ in range(2))
    assert once.labels.tobytes() == twice.labels.tobytes()
    assert once.centroids.tobytes() == twice.centroids.tobytes()


def test_assignment_is_the_nearest_centroid_by_cosine() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 16)).astype(np.float32)
    centroids = rng.standard_normal((5, 16)).astype(np.float32)
    labels, similarity = clusters.assign(vectors, centroids)
    assert (labels == (vectors @ centroids.T).argmax(1)).all()
    assert np.allclose(similarity, (vectors @ centroids.T).max(1), atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_prompts_than_clusters_still_cluster(n: int) -> None:
    rows, _ = planted_rows(n=n, k=2, d_sae=64)
    assert len(clusters.cluster(rows, ClustersConfig(k=8, dims=16)).labels) == n


def test_a_prompt_that_fires_nothing_gets_a_cluster_too() -> None:
    dense = np.eye(6, 8, dtype=np.float32)
    dense[3] = 0
    assert len(clusters.cluster(rows_from_dense(dense), ClustersConfig(k=2, dims=8)).labels) == 6


def test_cards_name_the_features_that_set_a_cluster_apart() -> None:
    dense = np.zeros((40, 10), dtype=np.float32)
    dense[:, 0] = 1  # the background
    dense[:20, 3] = 1
    dense[20:, 7] = 1
    rows = rows_from_dense(dense)
    found = clusters.cluster(rows, ClustersConfig(k=2, dims=16))
    cards = clusters.cards(rows, found)
    assert {card.features[0] for card in cards} == {(3, 2.0), (7, 2.0)}
    for card in cards:
        assert card.size == 20
        assert all(found.labels[row] == card.cluster for row in card.nearest)
