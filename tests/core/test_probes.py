from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import ElasticNetCV, LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier

from saerl_core import probes
from saerl_core.features import FeatureRows
from saerl_core.probes import inputs
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
    probe = probes.fit_elastic_net(inputs(rows), 1 - pass_rate, l1_ratio=0.5, folds=5)
    assert np.allclose(probe.predict(inputs(rows)), np.clip(model.predict(scaled), 0, 1), atol=2e-3)


def test_logistic_agrees_with_scikit_learn_on_dense_standardised_features() -> None:
    rows, pass_rate = world()
    easy = pass_rate > np.median(pass_rate)
    dense = np.sqrt(rows.matrix().toarray().astype(np.float64))
    scaled = dense / dense.std(axis=0)
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000).fit(scaled, easy)
    probe = probes.fit_logistic(inputs(rows), easy)
    assert np.allclose(probe.predict(inputs(rows)), model.predict_proba(scaled)[:, 1], atol=1e-3)


@pytest.mark.parametrize("penalties", [probes._RIDGE_PENALTIES, np.array([0.3])])
def test_ridge_agrees_with_scikit_learn_on_dense_standardised_features(
        penalties: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_RIDGE_PENALTIES", penalties)
    rows, pass_rate = world(n=150)
    dense = np.sqrt(rows.matrix().toarray().astype(np.float64))
    scaled = dense / dense.std(axis=0)
    hard, length = 1 - pass_rate, scaled.var(axis=0).sum()

    def leave_one_out_error(alpha: float) -> float:
        others = [np.delete(np.arange(150), i) for i in range(0, 150, 5)]
        models = [Ridge(alpha=alpha).fit(scaled[rest], hard[rest]) for rest in others]
        return sum(float((m.predict(scaled[[i]])[0] - hard[i]) ** 2) for i, m in zip(range(0, 150, 5), models,
                                                                                    strict=True))

    probe = probes.fit_ridge(inputs(rows), hard)
    candidates = {alpha: Ridge(alpha=alpha).fit(scaled, hard).predict(scaled) for alpha in length * penalties}
    nearest = min(candidates, key=lambda alpha: np.abs(np.clip(candidates[alpha], 0, 1)
                                                      - probe.predict(inputs(rows))).max())
    assert np.allclose(probe.predict(inputs(rows)), np.clip(candidates[nearest], 0, 1), atol=1e-4)
    assert leave_one_out_error(nearest) <= 1.1 * min(map(leave_one_out_error, candidates))


def test_what_is_the_same_in_every_prompt_changes_no_probe() -> None:
    """A long system message: its features fire everywhere, and hardly vary."""
    rows, pass_rate = world()
    dense, easy = rows.matrix().toarray(), pass_rate > np.median(pass_rate)
    rng = np.random.default_rng(0)
    shared = np.hstack([np.full((len(dense), 3), 2.0), 5 + 0.01 * rng.standard_normal((len(dense), 20))])
    plain, framed = inputs(rows), inputs(rows_from_dense(np.hstack([dense, shared])))
    for fit, target in ((probes.fit_ridge, 1 - pass_rate), (probes.fit_logistic, easy)):
        alone, together = fit(plain, target).predict(plain), fit(framed, target).predict(framed)
        assert probes.spearman(alone, together) > 0.97
        assert np.std(together) == pytest.approx(np.std(alone), rel=0.1)


def test_features_that_never_vary_leave_a_probe_that_knows_nothing() -> None:
    x, good = inputs(rows_from_dense(np.full((40, 3), 2.0))), np.repeat([True, False], [30, 10])
    for probe in (probes.fit_logistic(x, good), probes.fit_mlp(x, good, hidden=4), probes.fit_ridge(x, good * 1.0)):
        assert np.allclose(probe.predict(x), 0.75)


def test_ridge_chooses_its_penalty_on_a_part_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, pass_rate = world()
    whole = probes.fit_ridge(inputs(rows), 1 - pass_rate).predict(inputs(rows))
    monkeypatch.setattr(probes, "_RIDGE_SELECTION_ROWS", 200)
    part = probes.fit_ridge(inputs(rows), 1 - pass_rate).predict(inputs(rows))
    assert probes.spearman(whole, part) > 0.98


def test_the_perceptron_that_is_kept_is_the_one_that_scikit_learn_fitted() -> None:
    rows, pass_rate = world()
    easy = pass_rate > np.median(pass_rate)
    _, _, scaled = probes._design(inputs(rows), 3)  # not its own scaling: the last bit decides where L-BFGS ends
    model = MLPClassifier((8,), solver="lbfgs", alpha=1.0, max_iter=300, random_state=0).fit(scaled, easy)
    probe = probes.fit_mlp(inputs(rows), easy, hidden=8)
    assert np.allclose(probe.predict(inputs(rows)), np.asarray(model.predict_proba(scaled)).T[1], atol=1e-4)
    assert probes.auc(probe.predict(inputs(rows)), easy) > 0.9


def test_rare_features_get_no_weight() -> None:
    rows, pass_rate = world()
    dense = rows.matrix().toarray()
    dense[:, 59] = 0
    dense[:2, 59] = 5
    x = inputs(rows_from_dense(dense))
    for probe in (probes.fit_ridge(x, 1 - pass_rate), probes.fit_elastic_net(x, 1 - pass_rate, l1_ratio=0.5, folds=5)):
        assert 59 not in probe.columns
        assert len(probe.columns)


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
    probe = probes.fit_mlp(inputs(rows), pass_rate > 0.5, hidden=4)
    probes.write_probe(tmp_path / "probe.safetensors", probe)
    from safetensors.numpy import load_file

    written = load_file(tmp_path / "probe.safetensors")
    assert (written["columns"] == probe.columns).all()
    for number, (weights, bias) in enumerate(probe.layers):
        assert (written[f"weights.{number}"] == weights).all()
        assert (written[f"bias.{number}"] == bias).all()
