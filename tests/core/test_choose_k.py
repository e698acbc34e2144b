from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score

from saerl_core import clusters
from saerl_core.choose_k import Stability, choose_k, grid, most_stable
from saerl_core.config import ClustersConfig
from tests.core.rows import planted_rows


def vectors(n: int, k: int) -> np.ndarray:
    rows, _ = planted_rows(n=n, k=k, d_sae=1024)
    return clusters.sketch(rows, clusters.inverse_document_frequency(rows), 128, 0)


@pytest.mark.parametrize("k", [8, 16])
def test_the_planted_number_of_clusters_is_found(k: int) -> None:
    choice = choose_k(vectors(2000, k), ClustersConfig(k="auto", max_k=45))
    assert choice.k == k
    assert [entry.k for entry in choice.curve] == [8, 11, 16, 23, 32, 45]


def test_the_curve_agrees_with_sklearns_kmeans_on_halves() -> None:
    x = vectors(1200, 8)
    curve = {entry.k: entry.mean for entry in choose_k(x, ClustersConfig(k="auto", max_k=23)).curve}
    order = np.random.default_rng(5).permutation(len(x))
    for k in (8, 16):
        both = [KMeans(k, random_state=i).fit(half).predict(x)
                for i, half in enumerate((x[order[:600]], x[order[600:]]))]
        assert curve[k] == pytest.approx(float(adjusted_mutual_info_score(*both)), abs=0.25)


def test_of_equally_stable_numbers_the_largest_is_chosen() -> None:
    curve = [Stability(2, 0.5, 0.1), Stability(4, 0.9, 0.05), Stability(8, 0.86, 0.01), Stability(16, 0.84, 0.2)]
    assert most_stable(curve) == 8


def test_the_grid_stops_where_clusters_would_be_too_small_to_judge() -> None:
    assert grid(160, 256) == []
    assert grid(600, 256) == [8, 11, 16]
    assert grid(10**6, 256) == [8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256]
    assert choose_k(vectors(40, 2), ClustersConfig(k="auto")).curve == []


def test_the_same_seed_gives_the_same_choice() -> None:
    x = vectors(400, 4)
    assert choose_k(x, ClustersConfig(k="auto")) == choose_k(x, ClustersConfig(k="auto"))
