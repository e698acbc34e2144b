"""Intra-batch feature overlap: how much the prompts of a batch look alike to the SAE.

The measure is the mean cosine over all pairs of a batch, between rows of square-rooted means weighted by idf: the
space in which the clusters are made, before it is hashed. A pair that shares common features only counts for little,
which the Jaccard index of active features cannot say, and no pair needs to be looked at: for unit vectors
||x_1 + ... + x_B||² = B + the sum over ordered pairs (the mean resultant length of directional statistics, Mardia &
Jupp 2000, section 9.2). So a batch costs what its features cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from saerl_core.clusters import weighted
from saerl_core.features import FeatureRows, take
from saerl_core.schedule import Schedule

_ROWS_AT_ONCE = 16_384


def batch_overlap(rows: FeatureRows, idf: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Mean pairwise cosine of each batch: float64 [batches] in [0, 1].

    Args:
        rows: Feature rows of n prompts.
        idf: float32 [d_sae], weights of the features.
        batches: int [batches, batch_size], row numbers.

    Returns:
        0 for a batch of one prompt. A prompt that fires nothing is like no other.
    """
    size = batches.shape[1]
    if size < 2:
        return np.zeros(len(batches))
    overlap = np.empty(len(batches))
    step = max(1, _ROWS_AT_ONCE // size)
    for start in range(0, len(batches), step):
        part = batches[start : start + step]
        x = weighted(take(rows, part.ravel()), idf)
        squares = _squared_norms(x)
        scale = np.divide(1, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
        adding = sp.csr_array((scale, np.arange(part.size), np.arange(len(part) + 1) * size),
                              shape=(len(part), part.size))
        total: Any = adding @ x
        pairs = _squared_norms(total) - (squares > 0).reshape(len(part), size).sum(axis=1)
        overlap[start : start + step] = np.maximum(pairs, 0) / (size * (size - 1))
    return overlap


def _squared_norms(matrix: sp.csr_array) -> np.ndarray:
    lengths = np.diff(matrix.indptr)
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths), matrix.data**2, minlength=len(lengths))


def shuffled(schedule: Schedule, seed: int) -> np.ndarray:
    """The batches of each epoch with its prompts in random order: what the overlap is to be compared with."""
    rng = np.random.default_rng([seed, 3])
    epochs = (schedule.batches[schedule.epoch == number] for number in np.unique(schedule.epoch))
    return np.concatenate([rng.permutation(batches.ravel()).reshape(batches.shape) for batches in epochs])
