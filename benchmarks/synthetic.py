"""Synthetic SAE features: planted clusters above a heavy-tailed background that all prompts share.

Each prompt fires some 150 of 65,536 features. A part of them comes from its cluster's own set, the rest from a common
background whose popularity falls like a power of its rank, as SAE features' does. Cluster sizes are uneven. Some
prompts are damaged: they fire a few features of one more set, whatever their cluster.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from saerl_core.features import FeatureRows, concatenate

_BLOCK = 50_000


def planted(n: int, k: int, d_sae: int = 65_536, draws: int = 180, own: float = 0.25, damaged: float = 0.1,
            seed: int = 0) -> tuple[FeatureRows, np.ndarray, np.ndarray]:
    """(rows of n prompts, their planted cluster int64 [n], whether they are damaged bool [n]).

    Args:
        n: Prompts.
        k: Planted clusters; sizes are drawn from a Dirichlet distribution (concentration 2).
        d_sae: Width of the SAE.
        draws: Features drawn for each prompt; repeats are merged, so fewer fire.
        own: Share of them that comes from the set of the prompt's cluster (as many features as `draws`).
        damaged: Share of the prompts that are damaged: a twentieth of their draws comes from the damage's own set.
        seed: Seed of everything.
    """
    rng = np.random.default_rng(seed)
    truth = rng.choice(k, n, p=rng.dirichlet(np.full(k, 2.0)))
    sets = rng.integers(0, d_sae, (k, draws))
    popular = rng.permutation(d_sae)
    from_own, from_damage = round(own * draws), draws // 20
    bad = rng.random(n) < damaged
    marks = rng.integers(0, d_sae, draws)
    parts = []
    for start in range(0, n, _BLOCK):
        these = truth[start : start + _BLOCK]
        mine = sets[these[:, None], rng.integers(0, draws, (len(these), from_own))]
        ranks = np.exp(rng.random((len(these), draws - from_own)) * np.log(d_sae)).astype(np.int64) - 1
        columns = np.concatenate([mine, popular[ranks]], axis=1)
        hit = np.flatnonzero(bad[start : start + _BLOCK])
        columns[hit, -from_damage:] = marks[rng.integers(0, draws, (len(hit), from_damage))]
        values = rng.lognormal(0, 0.7, columns.shape).astype(np.float32)
        indptr = np.arange(len(these) + 1) * draws
        matrix = sp.csr_array((values.ravel(), columns.ravel(), indptr), shape=(len(these), d_sae))
        matrix.sum_duplicates()
        parts.append(_rows(matrix, len(these), d_sae))
    return concatenate(parts), truth, bad


def _rows(matrix: sp.csr_array, n: int, d_sae: int) -> FeatureRows:
    tokens, none = np.full(n, 100, np.int32), np.zeros(n, np.int32)
    return FeatureRows(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data,
                       2 * matrix.data, tokens, none, none, np.full(n, np.nan, np.float32), d_sae)
