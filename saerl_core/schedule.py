"""Which prompts share a batch, and in which order the batches come.

Every cluster is a queue, in random order or from easy to hard. A batch is drawn from a few clusters that take turns;
those that have most of their queue left go first, so that all clusters are gone through at the same pace. Then each
batch exchanges its tail with the next one's head ("moderate mixing"). The parameters bend each of these rules; the
strategies that they reach are listed with `ScheduleConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from saerl_core.apportion import apportion
from saerl_core.config import ScheduleConfig
from saerl_core.errors import ConfigError, DataError

VERSION = 4

ScheduleDropReason = Literal["too_easy", "too_hard", "beyond_steps", "remainder"]


@dataclass(frozen=True)
class Schedule:
    """An order for n prompts: which of them are trained on, and when."""

    batches: np.ndarray
    """int64 [batches, batch_size]: row numbers, all epochs one after the other"""
    epoch: np.ndarray
    """int32 [batches]"""
    dropped: dict[ScheduleDropReason, np.ndarray]
    """reason → int64 row numbers, ascending: the rows that no batch holds"""


def check_batches(config: ScheduleConfig, rows: int, dropped: Mapping[str, int] | None = None) -> None:
    """Tell early what the manifest stage would tell late: a batch that the data cannot fill.

    Args:
        config: The size of a batch.
        rows: Usable prompts.
        dropped: How many others were dropped, by reason.

    Raises:
        ConfigError: `schedule.batch_size` is larger than the data.
    """
    if rows < config.batch_size:
        reasons = ", ".join(f"{count} {reason}" for reason, count in (dropped or {}).items())
        raise ConfigError(f"schedule.batch_size = {config.batch_size} is larger than the data: {rows} usable prompts"
                          + (f"; dropped: {reasons}" if reasons else ""))


def batch_count(config: ScheduleConfig, rows: int) -> int:
    """Batches that so many prompts give over all epochs, if none is outside the band."""
    available = rows // config.batch_size * config.epochs
    return min(available, config.steps or available)


def make_schedule(clusters: np.ndarray, difficulty: np.ndarray, config: ScheduleConfig) -> Schedule:
    """Order prompts into full batches.

    Args:
        clusters: int [n].
        difficulty: float [n] in [0, 1].
        config: Batch size, mixing, order, budget, seed. The result depends on nothing else.

    Raises:
        DataError: fewer prompts than one batch needs.
    """
    dropped = outside_band(difficulty, config)
    inside = np.ones(len(clusters), dtype=bool)
    for rows in dropped.values():
        inside[rows] = False
    candidates = np.flatnonzero(inside)
    full = len(candidates) // config.batch_size
    if full == 0:
        raise DataError(f"schedule.batch_size = {config.batch_size} is larger than the data: {len(candidates)} of "
                        f"{len(clusters)} prompts are left to schedule"
                        + (f" ({len(clusters) - len(candidates)} are outside schedule.min_difficulty and "
                           "max_difficulty)" if dropped else ""))
    per_epoch = min(full, config.steps or full)
    if config.clusters_per_batch is None:
        clusters = np.zeros_like(clusters)

    passes = min(config.epochs, -(-(config.steps or per_epoch * config.epochs) // per_epoch))
    chosen, epochs = candidates, []
    for epoch in range(passes if config.reshuffle_epochs else 1):
        rng = np.random.default_rng([config.seed, epoch])
        place = _places(difficulty, config, rng)
        if epoch == 0:
            chosen = _thin(candidates, clusters, place, per_epoch * config.batch_size)
        epochs.append(_mix_tails(_stages(chosen, clusters, place, config, rng), config.tail_mix))
    batches = np.concatenate(epochs if config.reshuffle_epochs else epochs * passes)

    reason: ScheduleDropReason = "remainder" if per_epoch == full else "beyond_steps"
    if len(chosen) < len(candidates):
        dropped[reason] = np.setdiff1d(candidates, chosen, assume_unique=True)
    total = min(config.steps or len(batches), len(batches))
    return Schedule(batches[:total], np.repeat(np.arange(passes, dtype=np.int32), per_epoch)[:total], dropped)


def outside_band(difficulty: np.ndarray, config: ScheduleConfig) -> dict[ScheduleDropReason, np.ndarray]:
    """Rows that are predicted too easy or too hard, by reason; a reason without rows is left out."""
    outside: dict[ScheduleDropReason, np.ndarray] = {
        "too_easy": np.flatnonzero(difficulty < config.min_difficulty),
        "too_hard": np.flatnonzero(difficulty > config.max_difficulty),
    }
    return {reason: rows for reason, rows in outside.items() if len(rows)}


def _places(difficulty: np.ndarray, config: ScheduleConfig, rng: np.random.Generator) -> np.ndarray:
    """int64 [n]: each row's place in one global queue, all different; ties and fading by lot."""
    lot = rng.permutation(len(difficulty))
    if config.order == "random":
        return lot
    effort = difficulty if config.order == "easy_first" else -difficulty
    rank = _ranks(np.lexsort((lot, effort)))
    return _ranks(np.lexsort((lot, (1 - config.fading) * rank + config.fading * lot)))


def _ranks(order: np.ndarray) -> np.ndarray:
    """The inverse of a permutation."""
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _thin(candidates: np.ndarray, clusters: np.ndarray, place: np.ndarray, budget: int) -> np.ndarray:
    """Keep `budget` rows: of each cluster its share, evenly from head to end of its queue; of one, the middle."""
    queued = candidates[np.lexsort((place[candidates], clusters[candidates]))]
    _, start, size = np.unique(clusters[queued], return_index=True, return_counts=True)
    quota = apportion(budget, size)
    kept = [first + (np.linspace(0, length - 1, count).round().astype(np.int64) if count != 1 else [length // 2])
            for first, length, count in zip(start, size, quota, strict=True)]
    return queued[np.concatenate(kept)]


def _stages(chosen: np.ndarray, clusters: np.ndarray, place: np.ndarray, config: ScheduleConfig,
            rng: np.random.Generator) -> np.ndarray:
    """Batches [n, batch_size], stage after stage; a stage is as good as an equal share of the batches."""
    in_place = chosen[np.argsort(place[chosen])]
    count = len(chosen) // config.batch_size
    cuts = np.arange(1, min(config.stages, count)) * count // min(config.stages, count)
    return np.concatenate([_draw(rows, clusters, config, rng)
                           for rows in np.split(in_place, cuts * config.batch_size)])


def _draw(rows: np.ndarray, clusters: np.ndarray, config: ScheduleConfig, rng: np.random.Generator) -> np.ndarray:
    """Rows in the order of their places → batches [n, batch_size], each drawn from `clusters_per_batch` clusters."""
    numbers, own, size = np.unique(clusters[rows], return_inverse=True, return_counts=True)
    luck = np.argsort(rng.random(len(numbers)))  # from here on a cluster's number decides ties
    own, size = _ranks(luck)[own], size[luck]
    batch, cluster, count = np.array(_turns(size, config)).T
    part = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    slots = np.empty_like(rows)
    # the slots of a cluster, in the order in which they are drawn, take its rows in the order of their places
    slots[np.argsort(cluster[part], kind="stable")] = rows[np.argsort(own, kind="stable")]
    # within a batch, clusters take turns: each spreads what it gives evenly over the batch
    return slots[np.lexsort((part, (nth + 0.5) / count[part], batch[part]))].reshape(-1, config.batch_size)


def _turns(size: np.ndarray, config: ScheduleConfig) -> list[tuple[int, int, int]]:
    """How many prompts each cluster gives to each batch: (batch, cluster, count), in the order of drawing.

    Args:
        size: int [k], prompts of each cluster; their sum is a multiple of the batch size.
        config: Batch size, clusters per batch, share.
    """
    equal = config.share == "equal"
    at_once = len(size) if config.clusters_per_batch in ("all", None) else int(config.clusters_per_batch)
    used = np.zeros_like(size)
    turns: list[tuple[int, int, int]] = []
    for batch in range(int(size.sum()) // config.batch_size):
        given = np.zeros_like(size)
        # in proportion, a cluster's next prompt is due at the middle of its share: small ones do not block the line
        due = (used + (0 if equal else 0.5)) / size
        line = np.argsort(np.where(used < size, due, np.inf), kind="stable")[: np.count_nonzero(used < size)]
        drawn, line = line[:at_once], line[at_once:]
        takers, room = drawn, config.batch_size
        while room:
            if equal:
                want = np.ones(len(takers))
            else:  # all takers come to the same pace
                pace = (room + used[takers].sum()) / size[takers].sum()
                want = np.maximum(pace * size[takers] - used[takers], 0)
            gives = np.minimum(apportion(room, want), (size - used)[takers])
            given[takers] += gives
            used[takers] += gives
            room -= int(gives.sum())
            # a cluster that runs dry hands its place to the next in line, or else its slots to the others
            dry = np.count_nonzero(used[takers] == size[takers])
            takers, line = (line[:dry], line[dry:]) if len(line) else (drawn[used[drawn] < size[drawn]], line)
            drawn = np.concatenate([drawn, takers[~np.isin(takers, drawn)]])
        turns += [(batch, int(number), int(given[number])) for number in drawn if given[number]]
    return turns


def _mix_tails(batches: np.ndarray, share: float) -> np.ndarray:
    """Exchange the last `share` of each batch with the first of the next one."""
    mixed = batches.copy()
    count = min(round(share * batches.shape[1]), batches.shape[1] // 2)
    if count:
        mixed[:-1, -count:], mixed[1:, :count] = batches[1:, :count], batches[:-1, -count:]
    return mixed
