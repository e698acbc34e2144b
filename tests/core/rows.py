"""Feature rows made for tests."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from saerl_core.features import FeatureRows


def rows_from_dense(dense: np.ndarray) -> FeatureRows:
    """Rows whose means are a dense [n, d_sae] matrix."""
    matrix = sp.csr_array(dense.astype(np.float32))
    matrix.sort_indices()
    n = dense.shape[0]
    ten, none = np.full(n, 10, np.int32), np.zeros(n, np.int32)
    return FeatureRows(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data,
                       matrix.data.copy(), ten, none, none, np.full(n, 0.1, np.float32), dense.shape[1])


def planted_rows(n: int, k: int, d_sae: int, seed: int = 0) -> tuple[FeatureRows, np.ndarray]:
    """Prompts of k clusters, each with features of its own above a heavy-tailed background common to all."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    own = np.stack([rng.choice(d_sae, 30, replace=False) for _ in range(k)])
    dense = np.zeros((n, d_sae), dtype=np.float32)
    for row in range(n):
        background = np.minimum((rng.pareto(0.8, 40) * 5).astype(int), d_sae - 1)
        columns = np.concatenate([own[truth[row], rng.integers(0, 30, 15)], background])
        dense[row, columns] = rng.lognormal(0, 0.5, len(columns))
    return rows_from_dense(dense), truth
