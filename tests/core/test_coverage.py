from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core import clusters, coverage
from saerl_core.config import ClustersConfig, CoverageConfig
from saerl_core.features import take
from tests.core.rows import planted_rows


def covered(vectors: np.ndarray, chosen: list[int]) -> float:
    return float(np.maximum(vectors @ vectors[chosen].T, 0).max(axis=1).sum()) if chosen else 0.0


def information(vectors: np.ndarray, chosen: list[int]) -> float:
    kernel = vectors[chosen].astype(np.float64) @ vectors[chosen].T.astype(np.float64) / 0.1 + np.eye(len(chosen))
    return float(np.linalg.slogdet(kernel)[1])


def unit_vectors(seed: int, n: int, dims: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


METHODS = [(coverage.facility_location, covered), (coverage.log_det, information)]


@pytest.mark.parametrize(("method", "value"), METHODS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 24), data=st.data())
def test_every_step_takes_what_adds_most(method: Any, value: Any, seed: int, n: int, data: st.DataObject) -> None:
    vectors = unit_vectors(seed, n)
    count = data.draw(st.integers(1, n))
    chosen = method(vectors, count).tolist()
    assert len(set(chosen)) == len(chosen) == count
    values = [value(vectors, chosen[: taken + 1]) for taken in range(count)]
    for taken in range(count):  # of near ties it may take either, so each step is held against the best from there
        rest = [row for row in range(n) if row not in chosen[:taken]]
        assert values[taken] >= max(value(vectors, [*chosen[:taken], row]) for row in rest) - 1e-4
    assert (np.diff(values) >= -1e-4).all()  # monotone
    assert (np.diff(values, 2) <= 1e-3).all()  # with diminishing returns


@pytest.mark.parametrize(("method", "value"), METHODS)
def test_covers_more_than_a_random_choice(method: Any, value: Any) -> None:
    vectors = unit_vectors(0, 300, 16)
    rng = np.random.default_rng(1)
    random = max(value(vectors, rng.choice(300, 30, replace=False).tolist()) for _ in range(20))
    assert value(vectors, method(vectors, 30).tolist()) > random


@pytest.mark.parametrize("method", ["facility_location", "log_det"])
@pytest.mark.parametrize("part", [16, 1024])
def test_the_budget_is_exact_and_every_cluster_keeps_its_share(
        monkeypatch: pytest.MonkeyPatch, method: Any, part: int) -> None:
    monkeypatch.setattr(coverage, "_PART", part)
    rows, _ = planted_rows(n=400, k=4, d_sae=512)
    found = clusters.cluster(rows, ClustersConfig(k=4, dims=64))
    candidates = np.sort(np.random.default_rng(0).choice(400, 300, replace=False))
    config = CoverageConfig(budget=100, method=method)
    chosen = coverage.select(rows, found.labels, found.codebook, candidates, config)
    assert len(np.unique(chosen)) == 100
    assert set(chosen) <= set(candidates)
    share = np.bincount(found.labels[chosen], minlength=4) - np.bincount(found.labels[candidates], minlength=4) / 3
    assert (np.abs(share) <= -(-300 // part)).all()
    again = coverage.select(rows, found.labels, found.codebook, candidates, config)
    assert again.tobytes() == chosen.tobytes()


def test_near_copies_are_passed_over_first() -> None:
    rows, _ = planted_rows(n=60, k=1, d_sae=512)
    found = clusters.cluster(rows, ClustersConfig(k=2, dims=128))
    twice = np.concatenate([np.arange(60), np.arange(60)])
    doubled = take(rows, twice)
    for method in ("facility_location", "log_det"):
        chosen = coverage.select(doubled, np.zeros(120, int), found.codebook, np.arange(120),
                                 CoverageConfig(budget=60, method=method))
        assert len(set(chosen % 60)) > 50


@pytest.mark.parametrize("budget", [None, 300, 1000])
def test_a_budget_that_fits_all_keeps_all(budget: int | None) -> None:
    rows, _ = planted_rows(n=300, k=4, d_sae=512)
    found = clusters.cluster(rows, ClustersConfig(k=4, dims=64))
    config = CoverageConfig(budget=budget)
    assert coverage.select(rows, found.labels, found.codebook, np.arange(300), config).tolist() == list(range(300))
