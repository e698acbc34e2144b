from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import normalized_mutual_info_score

from saerl_core import clusters
from saerl_core.config import ClustersConfig
from saerl_core.errors import ArtifactError
from saerl_core.features import FeatureRows, take
from saerl_core.kmeans import assign, fit
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


def test_features_that_fire_everywhere_count_by_their_deviation() -> None:
    dense = np.random.default_rng(0).gamma(2.0, [1, 100, 1e4, 1, 1], (300, 5))
    dense[:, 3], dense[:, 4] = 7, 0  # one that is always the same, one that never fires
    weights = clusters.feature_weights(rows_from_dense(dense), ClustersConfig(weights="deviation"))
    np.testing.assert_allclose(weights[:3], 1 / np.sqrt(dense[:, :3]).std(axis=0), rtol=1e-4)
    assert weights[3:].tolist() == [0, 0]


def test_clusters_of_dense_features_are_found_beside_a_dimension_that_is_far_larger() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 600)
    dense = 5 + rng.random((600, 40)) + np.eye(4)[truth].repeat(10, axis=1)
    dense[:, 0] = rng.gamma(5.0, 1e4, 600)
    scores = {weights: normalized_mutual_info_score(truth, clusters.cluster(
        rows_from_dense(dense), ClustersConfig(k=4, dims=256, weights=weights)).labels)
        for weights in ("deviation", "none")}
    assert scores["deviation"] > 0.9 > 0.5 > scores["none"]


def test_the_same_seed_gives_the_same_bytes() -> None:
    rows, _ = planted_rows(n=300, k=4, d_sae=512)
    once, twice = (clusters.cluster(rows, ClustersConfig(k=6, dims=64)) for _ in range(2))
    assert once.labels.tobytes() == twice.labels.tobytes()
    assert clusters.codebook_bytes(once.codebook) == clusters.codebook_bytes(twice.codebook)


def test_assignment_is_the_nearest_centroid_by_cosine() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 16)).astype(np.float32)
    centroids = rng.standard_normal((5, 16)).astype(np.float32)
    labels, similarity = assign(vectors, centroids)
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


def test_cards_agree_with_a_loop_over_every_cluster_and_feature() -> None:
    rows, _ = planted_rows(n=400, k=6, d_sae=256)
    found = clusters.cluster(rows, ClustersConfig(k=6, dims=64))
    fires = np.zeros((400, 256), dtype=bool)
    for row in range(400):
        fires[row, rows.indices[rows.indptr[row] : rows.indptr[row + 1]]] = True
    for card in clusters.cards(rows, found):
        members = [row for row in range(400) if found.labels[row] == card.cluster]
        lift = {feature: fires[members, feature].mean() / fires[:, feature].mean() for feature in range(256)
                if fires[members, feature].mean() >= 0.2}
        best = sorted(lift, key=lambda feature: (-lift[feature], feature))[:6]
        assert card.size == len(members)
        assert card.features == [(feature, pytest.approx(lift[feature], abs=1e-3)) for feature in best]
        assert card.nearest == sorted(members, key=lambda row: -found.similarity[row])[:4]


def test_the_size_of_the_blocks_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = planted_rows(n=500, k=4, d_sae=512)
    config = ClustersConfig(k=4, dims=64)
    whole = clusters.cluster(rows, config)
    monkeypatch.setattr("saerl_core.features.blocks.__defaults__", (96,))
    parts = clusters.cluster(rows, config)
    assert parts.labels.tobytes() == whole.labels.tobytes()
    assert clusters.codebook_bytes(parts.codebook) == clusters.codebook_bytes(whole.codebook)


def test_two_levels_find_planted_clusters_nearly_as_well_as_one() -> None:
    rows, truth = planted_rows(n=3000, k=30, d_sae=2048)
    one, two = (clusters.cluster(rows, ClustersConfig(k=60, dims=256, two_level_above=bound)) for bound in (256, 16))
    agreement = [normalized_mutual_info_score(truth, found.labels) for found in (one, two)]
    assert len(two.codebook.centroids) == 60
    assert agreement[1] > 0.97 * agreement[0] > 0.85


@pytest.mark.parametrize("k", [9, 40, 50])
def test_two_levels_never_ask_for_more_clusters_than_there_are_prompts(k: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroids, _ = fit(vectors, k, ClustersConfig(two_level_above=4), seed=1)
    assert len(centroids) <= k
    assert len(centroids) >= min(k, 40)


def test_a_codebook_assigns_prompts_as_the_run_that_made_it_did(tmp_path: Path) -> None:
    rows, _ = planted_rows(n=300, k=4, d_sae=512)
    found = clusters.cluster(rows, ClustersConfig(k=4, dims=64, seed=3))
    (tmp_path / "c.safetensors").write_bytes(clusters.codebook_bytes(found.codebook))
    book = clusters.read_codebook(tmp_path / "c.safetensors")
    some = np.arange(0, 300, 7)
    labels, similarity = clusters.assign_rows(take(rows, some), book.centroids, book.idf, book.sketch_seed)
    assert (labels == found.labels[some]).all()
    assert np.allclose(similarity, found.similarity[some], atol=1e-6)
    assert book.similarity == pytest.approx(float(found.similarity.mean()), abs=1e-6)
    assert book.sizes.tolist() == np.bincount(found.labels, minlength=4).tolist()


def test_a_file_that_is_no_codebook_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="not a file of clusters"):
        clusters.read_codebook(tmp_path / "c.safetensors")
