from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import normalized_mutual_info_score

from saerl_core import clusters, drift
from saerl_core.config import ClustersConfig
from saerl_core.features import FeatureRows, take
from tests.core.rows import planted_rows

CONFIG = ClustersConfig(k=6, dims=128, previous="before")


@pytest.fixture(scope="module")
def before() -> tuple[FeatureRows, np.ndarray, clusters.Clusters]:
    rows, truth = planted_rows(n=1200, k=6, d_sae=1024)
    return rows, truth, clusters.cluster(take(rows, np.arange(600)), CONFIG)


def test_new_prompts_of_the_same_kind_keep_their_clusters_and_numbers(
        before: tuple[FeatureRows, np.ndarray, clusters.Clusters]) -> None:
    rows, truth, fitted = before
    found, moved = drift.recluster(rows, fitted.codebook, CONFIG)
    assert (found.labels[:600] == fitted.labels).all()
    assert normalized_mutual_info_score(truth, found.labels) > 0.95
    assert found.codebook is fitted.codebook
    assert moved.largest < 0.1


def test_other_prompts_drift_and_are_clustered_anew(
        before: tuple[FeatureRows, np.ndarray, clusters.Clusters]) -> None:
    others, truth = planted_rows(n=600, k=6, d_sae=1024, seed=9)
    found, moved = drift.recluster(others, before[2].codebook, CONFIG)
    assert moved.similarity_drop > 0.1
    assert found.iterations > 0
    assert normalized_mutual_info_score(truth, found.labels) > 0.95
    kept, same = drift.recluster(others, before[2].codebook, CONFIG.model_copy(update={"refit": "never"}))
    assert same == moved
    assert kept.iterations == 0


def test_a_change_of_shares_alone_is_drift(before: tuple[FeatureRows, np.ndarray, clusters.Clusters]) -> None:
    rows, truth, fitted = before
    _, moved = drift.recluster(take(rows, np.flatnonzero(truth < 2)), fitted.codebook, CONFIG)
    assert moved.similarity_drop < 0.1 < moved.share_divergence


def test_refit_always_clusters_anew_and_still_tells_the_drift(
        before: tuple[FeatureRows, np.ndarray, clusters.Clusters]) -> None:
    rows, _, fitted = before
    found, moved = drift.recluster(rows, fitted.codebook, CONFIG.model_copy(update={"refit": "always"}))
    assert found.iterations > 0
    assert moved.similarity_at_fit == pytest.approx(fitted.codebook.similarity, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=20)
       .filter(lambda pairs: all(map(any, zip(*pairs, strict=True)))))
def test_the_divergence_is_scipys(pairs: list[tuple[int, int]]) -> None:
    these, those = np.array(pairs).T
    expected = float(np.nan_to_num(jensenshannon(these, those, base=2))) ** 2
    assert drift.jensen_shannon(these, those) == pytest.approx(expected, abs=1e-9)


def test_mini_batches_move_the_centroids_towards_the_prompts_and_keep_the_numbers(
        before: tuple[FeatureRows, np.ndarray, clusters.Clusters]) -> None:
    rows, _, fitted = before
    later = take(rows, np.arange(600, 1200))
    stay, _ = drift.recluster(later, fitted.codebook, CONFIG)
    follow, _ = drift.recluster(later, fitted.codebook, CONFIG.model_copy(update={"mini_batch_steps": 10}))
    assert follow.similarity.mean() > stay.similarity.mean()
    assert (follow.labels == stay.labels).mean() > 0.95
    assert np.allclose(np.linalg.norm(follow.codebook.centroids, axis=1), 1, atol=1e-5)
    assert follow.codebook.similarity == fitted.codebook.similarity  # slow drift must add up


def test_one_mini_batch_is_sculleys_loop_over_its_prompts(
        before: tuple[FeatureRows, np.ndarray, clusters.Clusters]) -> None:
    rows, _, fitted = before
    book = fitted.codebook
    some = take(rows, np.arange(700, 760))
    vectors = clusters.sketch(some, book.idf, 128, book.sketch_seed)
    centroids, count = book.centroids.astype(np.float64), book.sizes.astype(np.float64).copy()
    for x, number in zip(vectors, (vectors @ book.centroids.T).argmax(axis=1), strict=True):
        count[number] += 1
        centroids[number] += (x - centroids[number]) / count[number]
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    assert np.allclose(drift.follow(some, book, 1, seed=0), centroids, atol=1e-5)
