from __future__ import annotations

import numpy as np
import pytest

from saerl_core import clusters, overlap
from saerl_core.config import ScheduleConfig
from saerl_core.features import FeatureRows
from saerl_core.schedule import Schedule, make_schedule
from tests.core.rows import planted_rows, rows_from_dense


def _every_pair(rows: FeatureRows, idf: np.ndarray, batch: np.ndarray) -> float:
    x = np.sqrt(rows.matrix().toarray()[batch]) * idf
    cosines = []
    for i in range(len(batch)):
        for j in range(i):
            norm = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
            cosines.append(x[i] @ x[j] / norm if norm else 0.0)
    return float(np.mean(cosines))


@pytest.mark.parametrize("at_once", [7, 24, 10_000])
def test_it_is_the_mean_cosine_over_all_pairs(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(overlap, "_ROWS_AT_ONCE", at_once)
    rows, _ = planted_rows(n=60, k=3, d_sae=256)
    idf = clusters.inverse_document_frequency(rows)
    batches = np.random.default_rng(0).permutation(60).reshape(5, 12)
    assert overlap.batch_overlap(rows, idf, batches) == pytest.approx(
        [_every_pair(rows, idf, batch) for batch in batches], abs=1e-5)


def test_a_prompt_that_fires_nothing_is_like_no_other() -> None:
    dense = np.zeros((4, 8), dtype=np.float32)
    dense[:2, 3] = 1
    rows = rows_from_dense(dense)
    assert overlap.batch_overlap(rows, np.ones(8, np.float32), np.arange(4)[None]).tolist() == pytest.approx([1 / 6])
    assert overlap.batch_overlap(rows, np.ones(8, np.float32), np.arange(4)[:, None]).tolist() == [0, 0, 0, 0]


def test_fewer_clusters_in_a_batch_overlap_more_and_all_of_them_less_than_chance() -> None:
    rows, truth = planted_rows(n=960, k=8, d_sae=1024)
    idf = clusters.inverse_document_frequency(rows)

    def mean(clusters_per_batch: int) -> float:
        config = ScheduleConfig(batch_size=32, clusters_per_batch=clusters_per_batch, tail_mix=0)
        batches = make_schedule(truth, np.zeros(960), config).batches
        return float(overlap.batch_overlap(rows, idf, batches).mean())

    plan = make_schedule(truth, np.zeros(960), ScheduleConfig(batch_size=32))
    by_chance = float(overlap.batch_overlap(rows, idf, overlap.shuffled(plan, 0)).mean())
    assert mean(1) > mean(2) > mean(4) > by_chance > mean(8)


def test_shuffling_keeps_the_prompts_of_each_epoch() -> None:
    batches = np.concatenate([np.arange(40).reshape(5, 8)] * 2)
    mixed = overlap.shuffled(Schedule(batches, np.repeat([0, 1], 5), {}), 0)
    for epoch in (mixed[:5], mixed[5:]):
        assert sorted(epoch.ravel()) == list(range(40))
    assert (mixed[:5] != mixed[5:]).any()
