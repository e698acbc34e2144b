from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core.config import ScheduleConfig
from saerl_core.errors import DataError
from saerl_core.schedule import make_schedule


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, ScheduleConfig]:
    n = draw(st.integers(8, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch_size = draw(st.integers(1, min(n, 16)))
    config = ScheduleConfig(
        batch_size=batch_size,
        clusters_per_batch=draw(st.integers(1, batch_size)),
        tail_mix=draw(st.floats(0, 1)),
        curriculum=draw(st.sampled_from(["within_clusters", "none"])),
        steps=draw(st.none() | st.integers(1, 6)),
        epochs=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 5)),
    )
    return rng.integers(0, draw(st.integers(1, 12)), n), rng.random(n), config


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_no_prompt_is_lost_or_repeated_within_an_epoch_and_every_batch_is_full(
        world: tuple[np.ndarray, np.ndarray, ScheduleConfig]) -> None:
    clusters, difficulty, config = world
    schedule = make_schedule(clusters, difficulty, config)
    assert schedule.batches.shape[1] == config.batch_size
    assert len(schedule.epoch) == len(schedule.batches)
    first = schedule.batches[schedule.epoch == 0].ravel()
    assert len(set(first)) == len(first)
    kept = set(schedule.batches.ravel().tolist())
    assert kept.isdisjoint(schedule.dropped)
    if config.steps is None:
        for epoch in range(config.epochs):
            assert set(schedule.batches[schedule.epoch == epoch].ravel().tolist()) == kept
    assert kept | set(schedule.dropped) == set(range(len(clusters)))


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_the_same_seed_gives_the_same_order(world: tuple[np.ndarray, np.ndarray, ScheduleConfig]) -> None:
    once, twice = make_schedule(*world), make_schedule(*world)
    assert (once.batches == twice.batches).all()
    assert once.dropped == twice.dropped


def test_each_cluster_goes_from_easy_to_hard_at_the_same_pace() -> None:
    rng = np.random.default_rng(0)
    clusters, difficulty = rng.integers(0, 8, 1600), rng.random(1600)
    batches = make_schedule(clusters, difficulty, ScheduleConfig(batch_size=32, tail_mix=0)).batches
    for number in range(8):
        order = [row for row in batches.ravel() if clusters[row] == number]
        assert (np.diff(difficulty[order]) >= 0).all()
    means = difficulty[batches].mean(axis=1)
    assert np.corrcoef(means, np.arange(len(means)))[0, 1] > 0.98


@pytest.mark.parametrize("clusters_per_batch", [1, 3, 8])
def test_without_mixing_a_batch_holds_the_clusters_asked_for(clusters_per_batch: int) -> None:
    clusters = np.repeat(np.arange(8), 400)
    config = ScheduleConfig(batch_size=24, clusters_per_batch=clusters_per_batch, tail_mix=0)
    batches = make_schedule(clusters, np.zeros(3200), config).batches
    found = [len(np.unique(clusters[batch])) for batch in batches]
    # a queue that runs dry in mid-batch hands its turn to another cluster
    assert np.median(found) == clusters_per_batch
    counts = np.bincount(clusters[batches[0]])
    assert np.ptp(counts[counts > 0]) <= 1


def test_tail_mixing_exchanges_the_asked_share_with_the_next_batch() -> None:
    clusters = np.arange(128) // 32
    configs = (ScheduleConfig(batch_size=32, clusters_per_batch=1, tail_mix=share) for share in (0.0, 0.25))
    plain, mixed = (make_schedule(clusters, np.zeros(128), config).batches for config in configs)
    for i in range(3):
        assert len(set(plain[i]) & set(mixed[i + 1])) == 8
    assert sorted(mixed.ravel()) == sorted(plain.ravel())


def test_a_budget_of_steps_thins_every_cluster_evenly_and_keeps_the_whole_range() -> None:
    rng = np.random.default_rng(1)
    clusters, difficulty = rng.integers(0, 4, 1000), rng.random(1000)
    schedule = make_schedule(clusters, difficulty, ScheduleConfig(batch_size=20, steps=10))
    chosen = schedule.batches.ravel()
    assert len(chosen) == 200
    shares = np.bincount(clusters[chosen], minlength=4) / np.bincount(clusters, minlength=4)
    assert np.allclose(shares, 0.2, atol=0.01)
    assert difficulty[chosen].min() < 0.05
    assert difficulty[chosen].max() > 0.95
    assert set(schedule.dropped.values()) == {"beyond_steps"}


def test_prompts_that_are_too_hard_are_left_out_with_that_reason() -> None:
    difficulty = np.linspace(0, 1, 100)
    schedule = make_schedule(np.zeros(100, int), difficulty, ScheduleConfig(batch_size=10, max_difficulty=0.8))
    assert {row for row, reason in schedule.dropped.items() if reason == "too_hard"} == set(
        np.flatnonzero(difficulty > 0.8))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"batch_size = 64 is larger than the data: 10 of 10"):
        make_schedule(np.zeros(10, int), np.zeros(10), ScheduleConfig(batch_size=64))
