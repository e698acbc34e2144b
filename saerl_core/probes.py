"""Probes: small models on sparse features, fitted with scikit-learn, kept as plain arrays.

Each column is divided by its standard deviation over the rows that the probe was fitted on. Columns are not centred, so
that rows stay sparse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
import scipy.sparse as sp
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNetCV, LogisticRegression, Ridge, RidgeCV
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from saerl_core.artifact import write_file
from saerl_core.features import FeatureRows

Link = Literal["identity", "logistic"]

_RIDGE_PENALTIES = np.logspace(-2, 2, 13)
"""In units of a row's mean squared distance from the mean row, so that they mean the same for any features. Every
column is scaled to a variance of 1, so that is the number of columns."""
_CONSTANT = 1e-6
"""A column whose variance is a smaller part of its mean square is the same in all rows, but for rounding."""
_RIDGE_SELECTION_ROWS = 1000
"""Leave-one-out needs the eigenvalues of an [n, n] matrix, which take n³ steps: on more rows than this the penalty is
chosen on a part."""


@dataclass(frozen=True)
class Probe:
    """link(x[:, columns] → layers), a ReLU between two layers. A linear probe is one layer."""

    columns: np.ndarray
    """int32 [m], the columns of x that it looks at"""
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    """(weights float32 [in, out], bias float32 [out]), the scaling folded into the first; the last has one output"""
    link: Link

    def predict(self, x: sp.csr_array) -> np.ndarray:
        """float32 [n] in [0, 1]: a probability, or a clipped regression.

        Args:
            x: [n, d], columns as in the matrix that the probe was fitted on.
        """
        (first, bias), *rest = self.layers
        shape: Any = x.shape
        spread = np.zeros((shape[1], first.shape[1]))
        spread[self.columns] = first
        out = x @ spread + bias
        for weights, bias in rest:
            out = np.maximum(out, 0) @ weights + bias
        score = out[:, 0]
        if self.link == "logistic":
            return (1 / (1 + np.exp(-score))).astype(np.float32)
        return np.clip(score, 0, 1).astype(np.float32)


def inputs(rows: FeatureRows) -> sp.csr_array:
    """float64 CSR [n, d_sae]: square roots of the mean activations, what a probe sees of a prompt."""
    return sp.csr_array((np.sqrt(rows.mean, dtype=np.float64), rows.indices, rows.indptr),
                         shape=(len(rows), rows.d_sae))


def fit_ridge(x: sp.csr_array, target: np.ndarray, *, min_rows_per_feature: int = 3, seed: int = 0) -> Probe:
    """Ridge regression (Hoerl & Kennard 1970), its penalty chosen by leave-one-out.

    Args:
        x: [n, d] of n labelled prompts.
        target: float [n] in [0, 1].
        min_rows_per_feature: Columns that are not 0 in fewer rows are left out.
        seed: Which rows choose the penalty, where there are more than are needed for that.
    """
    columns, scale, x = _design(x, min_rows_per_feature)
    if not len(columns) or np.ptp(target) == 0:
        return _constant(target)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(target))[:_RIDGE_SELECTION_ROWS])
    with threadpool_limits(1, user_api="blas"):  # an eigenvalue problem this small is 20 times as dear on two
        search: Any = RidgeCV(alphas=len(columns) * _RIDGE_PENALTIES).fit(x[chosen], target[chosen])
    model = Ridge(alpha=float(search.alpha_), solver="sparse_cg", tol=1e-6).fit(x, target)
    return _linear(columns, model.coef_ / scale, float(model.intercept_), "identity")


def fit_elastic_net(x: sp.csr_array, target: np.ndarray, *, l1_ratio: float, folds: int,
                    min_rows_per_feature: int = 3, seed: int = 0) -> Probe:
    """ElasticNet regression (Zou & Hastie 2005), its penalty chosen by cross-validation.

    Args:
        x: [n, d] of n labelled prompts.
        target: float [n] in [0, 1].
        l1_ratio: Mix of L1 and L2.
        folds: Cross-validation folds.
        min_rows_per_feature: Columns that are not 0 in fewer rows are left out.
        seed: Order of the rows in the folds.
    """
    columns, scale, x = _design(x, min_rows_per_feature)
    if not len(columns) or np.ptp(target) == 0:
        return _constant(target)
    order = np.random.default_rng(seed).permutation(len(target))  # the folds are blocks: shuffle, or file order leaks
    model = ElasticNetCV(l1_ratio=max(l1_ratio, 0.01), cv=folds, alphas=20, eps=3e-3, max_iter=2000, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties may not converge; CV passes them by
        model.fit(x[order], target[order])
    return _linear(columns, model.coef_ / scale, float(model.intercept_), "identity")


def fit_logistic(x: sp.csr_array, good: np.ndarray, *, penalty: float = 1.0,
                 min_rows_per_feature: int = 3) -> Probe:
    """Logistic regression with balanced classes.

    Args:
        x: [n, d].
        good: bool [n], the class whose probability the probe gives.
        penalty: Inverse strength of the L2 penalty.
        min_rows_per_feature: Columns that are not 0 in fewer rows are left out.
    """
    columns, scale, x = _design(x, min_rows_per_feature)
    if not len(columns):
        return _constant(good)
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)
    model.fit(x, good)
    return _linear(columns, np.ravel(model.coef_) / scale, float(np.ravel(model.intercept_)[0]), "logistic")


def fit_mlp(x: sp.csr_array, good: np.ndarray, *, hidden: int, min_rows_per_feature: int = 3, seed: int = 0) -> Probe:
    """A perceptron with one hidden layer, fitted by L-BFGS: rows are few, and all of them fit into one batch.

    Args:
        x: [n, d].
        good: bool [n], the class whose probability the probe gives.
        hidden: Width of the hidden layer.
        min_rows_per_feature: Columns that are not 0 in fewer rows are left out.
        seed: Seed of the initial weights.
    """
    columns, scale, x = _design(x, min_rows_per_feature)
    if not len(columns):
        return _constant(good)
    model = MLPClassifier((hidden,), solver="lbfgs", alpha=1.0, max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, good)
    (first, last), (first_bias, last_bias) = model.coefs_, model.intercepts_
    layers = ((first / scale[:, None], first_bias), (last, last_bias))
    return Probe(columns.astype(np.int32), tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in layers),
                 "logistic")


def _design(x: sp.csr_array, min_rows_per_feature: int) -> tuple[np.ndarray, np.ndarray, sp.csr_array]:
    """(columns kept, their standard deviations, the scaled matrix of these columns); what never varies is not kept."""
    by_column = x.tocsc()
    columns = np.flatnonzero(np.diff(by_column.indptr) >= min_rows_per_feature)
    by_column = by_column[:, columns]
    mean = np.asarray(by_column.mean(axis=0)).ravel()
    mean_square = np.asarray(by_column.multiply(by_column).mean(axis=0)).ravel()
    variance = mean_square - mean**2
    varies = np.flatnonzero(variance > _CONSTANT * mean_square)
    columns, by_column, scale = columns[varies], by_column[:, varies], np.sqrt(variance[varies])
    scaled = (by_column @ sp.diags_array(1 / scale)).tocsr()
    scaled.indices, scaled.indptr = scaled.indices.astype(np.int32), scaled.indptr.astype(np.int32)  # scikit-learn's
    return columns, scale, scaled


def _linear(columns: np.ndarray, weights: np.ndarray, bias: float, link: Link) -> Probe:
    used = np.flatnonzero(weights)
    layer = (weights[used, None].astype(np.float32), np.array([bias], np.float32))
    return Probe(columns[used].astype(np.int32), (layer,), link)


def _constant(target: np.ndarray) -> Probe:
    return _linear(np.zeros(0, np.int32), np.zeros(0), float(np.mean(target)), "identity")


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly from the first to the last."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(np.int64))]


def write_probe(path: Path, probe: Probe) -> None:
    """Save a probe as safetensors, atomically."""
    tensors = {"columns": probe.columns}
    for number, (weights, bias) in enumerate(probe.layers):
        tensors |= {f"weights.{number}": np.ascontiguousarray(weights), f"bias.{number}": bias}
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
