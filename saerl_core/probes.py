"""Linear probes on pooled features: fitted with scikit-learn, kept as plain arrays.

Inputs are square roots of mean activations, each feature divided by its standard deviation over the rows that the
probe was fitted on. Features are not centred, so that rows stay sparse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.numpy
import scipy.sparse as sp
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNetCV, LogisticRegression

from saerl_core.artifact import write_file
from saerl_core.features import FeatureRows

Link = Literal["identity", "logistic"]


@dataclass(frozen=True)
class Probe:
    """A linear score over few features: link(√mean[features] · weights + bias)."""

    features: np.ndarray
    """int32 [m], features with a weight other than 0"""
    weights: np.ndarray
    """float32 [m], the scaling folded in"""
    bias: float
    link: Link

    def predict(self, rows: FeatureRows) -> np.ndarray:
        """float32 [n] in [0, 1]: a probability, or a clipped regression."""
        weights = np.zeros(rows.d_sae, dtype=np.float64)
        weights[self.features] = self.weights
        score = inputs(rows) @ weights + self.bias
        if self.link == "logistic":
            return (1 / (1 + np.exp(-score))).astype(np.float32)
        return np.clip(score, 0, 1).astype(np.float32)


def inputs(rows: FeatureRows) -> sp.csr_array:
    """float64 CSR [n, d_sae]: what a probe sees of the rows."""
    return sp.csr_array((np.sqrt(rows.mean, dtype=np.float64), rows.indices, rows.indptr),
                         shape=(len(rows), rows.d_sae))


def fit_elastic_net(rows: FeatureRows, target: np.ndarray, *, l1_ratio: float, folds: int,
                    min_rows_per_feature: int, seed: int = 0) -> Probe:
    """ElasticNet regression (Zou & Hastie 2005), its penalty chosen by cross-validation.

    Args:
        rows: Features of n labelled prompts.
        target: float [n] in [0, 1].
        l1_ratio: Mix of L1 and L2.
        folds: Cross-validation folds.
        min_rows_per_feature: Features that fire on fewer rows are left out.
        seed: Order of the rows in the folds.
    """
    features, scale, x = _design(rows, min_rows_per_feature)
    if not len(features) or np.ptp(target) == 0:
        return Probe(np.zeros(0, np.int32), np.zeros(0, np.float32), float(np.mean(target)), "identity")
    order = np.random.default_rng(seed).permutation(len(target))  # the folds are blocks: shuffle, or file order leaks
    model = ElasticNetCV(l1_ratio=max(l1_ratio, 0.01), cv=folds, alphas=20, eps=3e-3, max_iter=2000, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties may not converge; CV passes them by
        model.fit(x[order], target[order])
    return _probe(features, model.coef_ / scale, float(model.intercept_), "identity")


def fit_logistic(rows: FeatureRows, intact: np.ndarray, *, penalty: float = 1.0,
                 min_rows_per_feature: int = 3) -> Probe:
    """Logistic regression with balanced classes.

    Args:
        rows: Features of n prompts.
        intact: bool [n], the class whose probability the probe gives.
        penalty: Inverse strength of the L2 penalty.
        min_rows_per_feature: Features that fire on fewer rows are left out.
    """
    features, scale, x = _design(rows, min_rows_per_feature)
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)
    model.fit(x, intact)
    return _probe(features, np.ravel(model.coef_) / scale, float(np.ravel(model.intercept_)[0]), "logistic")


def _design(rows: FeatureRows, min_rows_per_feature: int) -> tuple[np.ndarray, np.ndarray, sp.csr_array]:
    x = inputs(rows).tocsc()
    frequency = np.diff(x.indptr)
    features = np.flatnonzero(frequency >= min_rows_per_feature)
    x = x[:, features]
    mean = np.asarray(x.mean(axis=0)).ravel()
    scale = np.sqrt(np.maximum(np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2, 1e-12))
    x = (x @ sp.diags_array(1 / scale)).tocsr()
    x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)  # scikit-learn takes no other
    return features, scale, x


def _probe(features: np.ndarray, weights: np.ndarray, bias: float, link: Link) -> Probe:
    used = np.flatnonzero(weights)
    return Probe(features[used].astype(np.int32), weights[used].astype(np.float32), bias, link)


def write_probe(path: Path, probe: Probe) -> None:
    """Save a probe as safetensors, atomically."""
    tensors = {"features": probe.features, "weights": probe.weights, "bias": np.array([probe.bias])}
    write_file(path, safetensors.numpy.save(tensors, metadata={"link": probe.link}))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 where either side is constant."""
    ranks_a, ranks_b = rankdata(a), rankdata(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return 0.0
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney), ties counted half; 0.5 where a class is missing."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return 0.5
    rank_sum = rankdata(score)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def bootstrap_interval(statistic: Callable[[np.ndarray], float], n: int, *, draws: int = 500,
                       seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of a statistic over resampled row numbers."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(draws)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
