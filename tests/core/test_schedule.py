from __future__ import annotations

from itertools import pairwise
from typing import Any

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
    per_batch: st.SearchStrategy[Any] = st.sampled_from(["all", None]) | st.integers(1, batch_size)
    order: Any = draw(st.sampled_from(["random", "easy_first", "hard_first"]))
    ordered = order != "random"
    config = ScheduleConfig(
        batch_size=batch_size,
        clusters_per_batch=draw(per_batch),
        share=draw(st.sampled_from(["equal", "proportional"])),
        tail_mix=draw(st.floats(0, 1)),
        order=order,
        stages=draw(st.integers(1, 30)) if ordered else 1,
        fading=draw(st.sampled_from([0.0, 0.99]) | st.floats(0, 1, exclude_max=True)) if ordered else 0.0,
        steps=draw(st.none() | st.integers(1, 6)),
        epochs=draw(st.integers(1, 3)),
        reshuffle_epochs=draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
    )
    return rng.integers(0, draw(st.integers(1, 12)), n), rng.random(n).round(2), config


@settings(max_examples=300, deadline=None)
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
    dropped = [int(row) for rows in schedule.dropped.values() for row in rows]
    assert len(dropped) + len(kept) == len(clusters)
    assert kept | set(dropped) == set(range(len(clusters)))
    if config.steps is None:
        for epoch in range(config.epochs):
            assert set(schedule.batches[schedule.epoch == epoch].ravel().tolist()) == kept


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_the_same_seed_gives_the_same_bytes(world: tuple[np.ndarray, np.ndarray, ScheduleConfig]) -> None:
    once, twice = make_schedule(*world), make_schedule(*world)
    assert once.batches.tobytes() == twice.batches.tobytes()
    assert {reason: rows.tolist() for reason, rows in once.dropped.items()} == {
        reason: rows.tolist() for reason, rows in twice.dropped.items()}


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_batches_are_composed_as_a_scheduler_with_plain_lists_composes_them(
        world: tuple[np.ndarray, np.ndarray, ScheduleConfig]) -> None:
    clusters, _, config = world
    # distinct difficulties leave nothing to a lot but the order of clusters that are level
    rng = np.random.default_rng(len(clusters))
    difficulty = rng.permutation(len(clusters)) / len(clusters)
    config = config.model_copy(update={"fading": 0.0, "tail_mix": 0.0, "epochs": 1, "steps": None})
    batches = make_schedule(clusters, difficulty, config).batches
    kept = batches.ravel().tolist()
    assert [sorted(batch) for batch in batches.tolist()] == [sorted(batch) for batch in _naive(
        kept, clusters, difficulty, config)]


def _naive(kept: list[int], clusters: np.ndarray, difficulty: np.ndarray, config: ScheduleConfig) -> list[list[int]]:
    """Slot by slot, one prompt at a time. Clusters that are level are ordered by the lot that the seed draws."""
    rng = np.random.default_rng(config.seed)
    rng.permutation(len(clusters))
    lot = np.random.default_rng([config.seed, 0]).permutation(len(clusters))
    effort = {"random": lot, "easy_first": difficulty, "hard_first": -difficulty}[config.order]
    kept = sorted(kept, key=lambda row: effort[row])
    size = config.batch_size
    stages = min(config.stages, len(kept) // size)
    made: list[list[int]] = []
    for stage in range(stages):
        first, last = (number * (len(kept) // size) // stages * size for number in (stage, stage + 1))
        rows = kept[first:last]
        cluster_of = {row: 0 if config.clusters_per_batch is None else int(clusters[row]) for row in rows}
        numbers = sorted(set(cluster_of.values()))
        luck = dict(zip(numbers, rng.random(len(numbers)), strict=True))
        queues = {number: [row for row in rows if cluster_of[row] == number] for number in numbers}
        total = {number: len(queue) for number, queue in queues.items()}
        for _ in range(len(rows) // size):
            made.append(_naive_batch(queues, total, luck, config))
    return made


def _naive_batch(queues: dict[int, list[int]], total: dict[int, int], luck: dict[int, float],
                 config: ScheduleConfig) -> list[int]:
    equal = config.share == "equal"

    def due(number: int) -> float:
        used = total[number] - len(queues[number])
        return (used if equal else used + 0.5) / total[number]

    line = sorted((number for number in queues if queues[number]), key=lambda number: (due(number), luck[number]))
    at_once = len(line) if config.clusters_per_batch in ("all", None) else config.clusters_per_batch
    assert isinstance(at_once, int)
    takers, line = line[:at_once], line[at_once:]
    drawn, batch = list(takers), []
    while len(batch) < config.batch_size:
        room = config.batch_size - len(batch)
        if equal:
            want = dict.fromkeys(takers, round(room / len(takers), 9))
        else:
            used = {number: total[number] - len(queues[number]) for number in takers}
            pace = (room + sum(used.values())) / sum(total[number] for number in takers)
            ahead = {number: max(pace * total[number] - used[number], 0) for number in takers}
            want = {number: round(ahead[number] * room / sum(ahead.values()), 9) for number in takers}
        quota = {number: int(np.floor(want[number])) for number in takers}
        for number in sorted(takers, key=lambda number: quota[number] - want[number])[: room - sum(quota.values())]:
            quota[number] += 1
        for number in takers:
            for _ in range(min(quota[number], len(queues[number]))):
                batch.append(queues[number].pop(0))
        dry = sum(not queues[number] for number in takers)
        if line:
            takers, line = line[:dry], line[dry:]
        else:
            takers = [number for number in drawn if queues[number]]
        drawn += [number for number in takers if number not in drawn]
    return batch


def world(n: int = 1600, k: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, k, n), rng.random(n)


@pytest.mark.parametrize("order", ["easy_first", "hard_first"])
def test_each_cluster_goes_through_its_difficulty_at_the_same_pace(order: Any) -> None:
    clusters, difficulty = world()
    sign = 1 if order == "easy_first" else -1
    batches = make_schedule(clusters, difficulty, ScheduleConfig(batch_size=32, tail_mix=0, order=order)).batches
    for number in range(8):
        drawn = [row for row in batches.ravel() if clusters[row] == number]
        assert (sign * np.diff(difficulty[drawn]) >= 0).all()
    means = difficulty[batches].mean(axis=1)
    assert sign * np.corrcoef(means, np.arange(len(means)))[0, 1] > 0.98


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


def test_extreme_diversity_takes_one_example_a_cluster() -> None:
    clusters, difficulty = world(n=1600, k=50)
    config = ScheduleConfig(batch_size=32, clusters_per_batch=32, tail_mix=0)
    batches = make_schedule(clusters, difficulty, config).batches
    found = [len(np.unique(clusters[batch])) for batch in batches]
    assert np.mean(np.array(found) == 32) > 0.9


def test_proportional_sampling_gives_every_batch_the_mix_of_the_whole() -> None:
    clusters = np.repeat(np.arange(5), [800, 400, 200, 100, 100])
    difficulty = np.random.default_rng(0).random(1600)
    batches = make_schedule(clusters, difficulty, ScheduleConfig(
        batch_size=64, clusters_per_batch="all", share="proportional", tail_mix=0)).batches
    counts = np.stack([np.bincount(clusters[batch], minlength=5) for batch in batches])
    assert (np.abs(counts - 64 * np.array([800, 400, 200, 100, 100]) / 1600) <= 1).all()


def test_in_proportion_small_clusters_are_not_drawn_before_they_are_due_and_block_no_place() -> None:
    clusters = np.concatenate([np.repeat(np.arange(4), 800), np.arange(40) // 2 + 4])
    batches = make_schedule(clusters, np.zeros(3240), ScheduleConfig(
        batch_size=24, clusters_per_batch=4, share="proportional", tail_mix=0)).batches
    with_small_ones = np.flatnonzero((clusters[batches] >= 4).any(axis=1)) / len(batches)
    assert with_small_ones.min() > 0.2  # the first of two is due after a quarter
    assert np.median([len(np.unique(clusters[batch])) for batch in batches]) == 4


def test_uniform_sampling_gives_every_cluster_the_same_number_until_it_runs_dry() -> None:
    clusters = np.repeat(np.arange(4), [400, 200, 100, 100])
    batches = make_schedule(clusters, np.zeros(800), ScheduleConfig(
        batch_size=16, clusters_per_batch="all", tail_mix=0)).batches
    assert (np.stack([np.bincount(clusters[batch], minlength=4) for batch in batches[:25]]) == 4).all()


def test_without_clusters_the_order_is_one_global_queue() -> None:
    clusters, difficulty = world(n=320)
    config = ScheduleConfig(batch_size=32, clusters_per_batch=None, tail_mix=0, order="easy_first")
    batches = make_schedule(clusters, difficulty, config).batches
    assert batches.ravel().tolist() == np.argsort(difficulty).tolist()


def test_the_random_order_pays_no_heed_to_difficulty() -> None:
    clusters, difficulty = world(n=3200)
    batches = make_schedule(clusters, difficulty, ScheduleConfig(batch_size=32)).batches
    assert (make_schedule(clusters, 1 - difficulty, ScheduleConfig(batch_size=32)).batches == batches).all()
    means = difficulty[batches].mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    assert (make_schedule(clusters, difficulty, ScheduleConfig(batch_size=32, seed=1)).batches != batches).any()


def test_quartile_stages_come_one_after_the_other_and_keep_clusters_together() -> None:
    clusters, difficulty = world(n=1280)
    batches = make_schedule(clusters, difficulty, ScheduleConfig(
        batch_size=32, clusters_per_batch=2, stages=4, tail_mix=0, order="easy_first")).batches
    stages = np.split(difficulty[batches], 4)
    for easier, harder in pairwise(stages):
        assert easier.max() < harder.min()
    assert np.median([len(np.unique(clusters[batch])) for batch in batches]) == 2


def test_fading_lets_easy_prompts_thin_out_between_strict_order_and_none() -> None:
    clusters, difficulty = world(n=3200)
    spread, trend = {}, {}
    for fading in (0.0, 0.5, 0.999):
        batches = make_schedule(clusters, difficulty, ScheduleConfig(
            batch_size=32, clusters_per_batch=None, tail_mix=0, order="easy_first", fading=fading)).batches
        means = difficulty[batches].mean(axis=1)
        spread[fading] = difficulty[batches].std(axis=1).mean()
        trend[fading] = np.corrcoef(means, np.arange(len(means)))[0, 1]
    assert spread[0.0] < 0.05 < 0.1 < spread[0.5] < 0.25 < spread[0.999]
    assert trend[0.0] > 0.999
    assert trend[0.5] > 0.9
    assert abs(trend[0.999]) < 0.3


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
    schedule = make_schedule(clusters, difficulty, ScheduleConfig(batch_size=20, steps=10, order="easy_first"))
    chosen = schedule.batches.ravel()
    assert len(chosen) == 200
    shares = np.bincount(clusters[chosen], minlength=4) / np.bincount(clusters, minlength=4)
    assert np.allclose(shares, 0.2, atol=0.01)
    assert difficulty[chosen].min() < 0.05
    assert difficulty[chosen].max() > 0.95
    assert set(schedule.dropped) == {"beyond_steps"}


def test_a_cluster_that_gives_one_prompt_gives_its_middle_one() -> None:
    clusters, difficulty = np.repeat(np.arange(20), 11), np.tile(np.linspace(0, 1, 11), 20)
    schedule = make_schedule(clusters, difficulty, ScheduleConfig(batch_size=20, steps=1, order="easy_first"))
    assert np.allclose(difficulty[schedule.batches], 0.5)


def test_epochs_repeat_the_batches_or_draw_them_anew_from_the_same_prompts() -> None:
    clusters, difficulty = world(n=640)
    same, anew = (make_schedule(clusters, difficulty, ScheduleConfig(
        batch_size=32, epochs=2, steps=None, reshuffle_epochs=value)).batches for value in (False, True))
    assert (same[:20] == same[20:]).all()
    assert (anew[:20] == same[:20]).all()
    assert (anew[:20] != anew[20:]).any()
    assert sorted(anew[:20].ravel()) == sorted(anew[20:].ravel())


def test_prompts_outside_the_band_are_left_out_with_their_reason() -> None:
    difficulty = np.linspace(0, 1, 100)
    schedule = make_schedule(np.zeros(100, int), difficulty, ScheduleConfig(
        batch_size=10, min_difficulty=0.1, max_difficulty=0.8))
    assert schedule.dropped["too_hard"].tolist() == np.flatnonzero(difficulty > 0.8).tolist()
    assert schedule.dropped["too_easy"].tolist() == np.flatnonzero(difficulty < 0.1).tolist()


def test_a_band_that_leaves_no_batch_says_so() -> None:
    with pytest.raises(DataError, match=r"4 of 10 prompts .* \(6 are outside schedule\.min_difficulty"):
        make_schedule(np.zeros(10, int), np.arange(10) / 10, ScheduleConfig(batch_size=5, min_difficulty=0.6))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"batch_size = 64 is larger than the data: 10 of 10"):
        make_schedule(np.zeros(10, int), np.zeros(10), ScheduleConfig(batch_size=64))
