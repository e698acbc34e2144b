from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import ElasticNetCV, LogisticRegression
from sklearn.metrics import roc_auc_score

from saerl_core import difficulty, probes, quality
from saerl_core.config import DifficultyConfig, QualityConfig
from saerl_core.features import FeatureRows
from tests.core.rows import rows_from_dense


def world(n: int = 400, d: int = 60, noise: float = 0.05, seed: int = 0) -> tuple[FeatureRows, np.ndarray]:
    """Rows whose pass rate falls with a few of their features."""
    rng = np.random.default_rng(seed)
    dense = rng.gamma(1.0, 1.0, (n, d)) * (rng.random((n, d)) < 0.4)
    effort = np.sqrt(dense[:, :5]) @ np.array([1.0, 0.8, 0.6, -0.7, 0.5])
    hard = 1 / (1 + np.exp(-(effort - effort.mean()))) + noise * rng.standard_normal(n)
    return rows_from_dense(dense), 1 - np.clip(hard, 0, 1)


def test_elastic_net_agrees_with_scikit_learn_on_dense_standardised_features() -> None:
    rows, pass_rate = world()
    dense = np.sqrt(rows.matrix().toarray().astype(np.float64))
    scaled = dense / dense.std(axis=0)
    order = np.random.default_rng(0).permutation(len(pass_rate))
    model = ElasticNetCV(l1_ratio=0.5, cv=5, alphas=20, eps=3e-3, max_iter=2000, tol=1e-3)
    model.fit(scaled[order], (1 - pass_rate)[order])
    probe = probes.fit_elastic_net(rows, 1 - pass_rate, l1_ratio=0.5, folds=5, min_rows_per_feature=3)
    assert np.allclose(probe.predict(rows), np.clip(model.predict(scaled), 0, 1), atol=2e-3)


def test_logistic_agrees_with_scikit_learn_on_dense_standardised_features() -> None:
    rows, pass_rate = world()
    easy = pass_rate > np.median(pass_rate)
    dense = np.sqrt(rows.matrix().toarray().astype(np.float64))
    scaled = dense / dense.std(axis=0)
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000).fit(scaled, easy)
    probe = probes.fit_logistic(rows, easy)
    assert np.allclose(probe.predict(rows), model.predict_proba(scaled)[:, 1], atol=1e-3)


def test_rare_features_get_no_weight() -> None:
    rows, pass_rate = world()
    dense = rows.matrix().toarray()
    dense[:, 59] = 0
    dense[:2, 59] = 5
    probe = probes.fit_elastic_net(rows_from_dense(dense), 1 - pass_rate, l1_ratio=0.5, folds=5, min_rows_per_feature=3)
    assert 59 not in probe.features


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
def test_auc_agrees_with_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    score, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    expected = roc_auc_score(positive, score) if 0 < positive.sum() < len(positive) else 0.5
    assert probes.auc(score, positive) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=60))
def test_spearman_agrees_with_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])
    expected = spearmanr(a, b)[0] if np.ptp(a) and np.ptp(b) else 0.0
    assert probes.spearman(a, b) == pytest.approx(expected)


def test_the_interval_covers_the_statistic() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    low, high = probes.bootstrap_interval(lambda i: float(values[i].mean()), 500)
    assert low < values.mean() < high
    assert high - low == pytest.approx(4 * values.std() / 500**0.5, rel=0.2)


def test_a_probe_is_written_as_safetensors(tmp_path: Path) -> None:
    rows, pass_rate = world(n=60)
    probe = probes.fit_logistic(rows, pass_rate > 0.5)
    probes.write_probe(tmp_path / "probe.safetensors", probe)
    from safetensors.numpy import load_file

    assert (load_file(tmp_path / "probe.safetensors")["weights"] == probe.weights).all()


def test_difficulty_is_learned_and_measured_on_rows_it_has_not_seen() -> None:
    rows, pass_rate = world()
    probe, report = difficulty.fit(rows, pass_rate, DifficultyConfig())
    assert report.used
    assert report.spearman is not None
    assert 0.85 < report.spearman < 1
    assert probe is not None
    assert probes.spearman(probe.predict(rows), 1 - pass_rate) > report.spearman  # in-sample flatters


def test_difficulty_from_shuffled_labels_is_not_used_and_says_so() -> None:
    rows, pass_rate = world()
    probe, report = difficulty.fit(rows, np.random.default_rng(0).permutation(pass_rate), DifficultyConfig())
    assert probe is None
    assert not report.used
    assert "does not beat chance" in report.why


def test_difficulty_with_one_pass_rate_for_all_is_not_used() -> None:
    rows, _ = world(n=60)
    probe, report = difficulty.fit(rows, np.full(60, 0.5), DifficultyConfig())
    assert probe is None
    assert report.spearman == 0


def pairs(shift: float, n: int = 200, d: int = 40, seed: int = 0) -> tuple[FeatureRows, FeatureRows]:
    rng = np.random.default_rng(seed)
    intact = rng.gamma(1.0, 1.0, (n, d)) * (rng.random((n, d)) < 0.4)
    damaged = rng.gamma(1.0, 1.0, (n, d)) * (rng.random((n, d)) < 0.4)
    damaged[:, :6] += shift * rng.random((n, 6))
    return rows_from_dense(intact), rows_from_dense(damaged)


def test_quality_tells_damage_apart_and_reports_each_kind() -> None:
    intact, damaged = pairs(shift=3)
    probe, report = quality.fit(intact, damaged, ["a", "b"] * 100, QualityConfig())
    assert report.used
    assert probe is not None
    assert set(report.auc_by_kind) == {"a", "b"}
    assert probe.predict(intact).mean() > 0.7 > 0.3 > probe.predict(damaged).mean()


def test_a_quality_probe_that_does_not_beat_chance_does_not_filter() -> None:
    intact, damaged = pairs(shift=0)
    probe, report = quality.fit(intact, damaged, ["a"] * 200, QualityConfig())
    assert probe is None
    assert "nothing is filtered" in report.why


def test_a_quality_probe_that_memorises_does_not_filter() -> None:
    intact, damaged = pairs(shift=0.4, n=120, d=400)
    probe, report = quality.fit(intact, damaged, ["a"] * 120, QualityConfig(min_auc=0.5, max_gap=0.1))
    assert report.auc_train is not None
    assert report.auc_train > 0.99
    assert probe is None


def test_the_filter_is_capped_and_says_so() -> None:
    scores = np.linspace(0, 1, 100)
    bad, note = quality.low_quality(scores, QualityConfig(threshold=0.1))
    assert (bad == (scores < 0.1)).all()
    assert note == ""
    bad, note = quality.low_quality(scores, QualityConfig(threshold=0.9, max_drop_share=0.2))
    assert bad.sum() == 20
    assert scores[bad].max() < scores[~bad].min()
    assert "only the worst 20 are dropped" in note
