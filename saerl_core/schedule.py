"""Which prompts share a batch, and in which order the batches come.

Every cluster is a queue, from easy to hard. A batch is drawn from a few clusters that take turns; those that have
most of their queue left go first, so that all clusters move through their difficulty at the same pace. Then each
batch exchanges its tail with the next one's head ("moderate mixing").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from saerl_core.config import ScheduleConfig
from saerl_core.errors import DataError

VERSION = 1

ScheduleDropReason = Literal["too_hard", "beyond_steps", "remainder"]


@dataclass(frozen=True)
class Schedule:
    """An order for n prompts: which of them are trained on, and when."""

    batches: np.ndarray
    """int64 [batches, batch_size]: row numbers, all epochs one after the other"""
    epoch: np.ndarray
    """int32 [batches]"""
    dropped: dict[int, ScheduleDropReason]
    """rows that no batch holds, and why"""


def make_schedule(clusters: np.ndarray, difficulty: np.ndarray, config: ScheduleConfig) -> Schedule:
    """Order prompts into full batches.

    Args:
        clusters: int [n].
        difficulty: float [n] in [0, 1].
        config: Batch size, mixing, curriculum, budget, seed. The result depends on nothing else.

    Raises:
        DataError: fewer prompts than one batch needs.
    """
    rng = np.random.default_rng(config.seed)
    tie = rng.permutation(len(clusters))
    dropped: dict[int, ScheduleDropReason] = {
        int(row): "too_hard" for row in np.flatnonzero(difficulty > config.max_difficulty)
    }
    candidates = np.setdiff1d(np.arange(len(clusters)), list(dropped))
    full = len(candidates) // config.batch_size
    if full == 0:
        raise DataError(f"schedule.batch_size = {config.batch_size} is larger than the data: {len(candidates)} of "
                        f"{len(clusters)} prompts are left to schedule")
    per_epoch = min(full, config.steps or full)
    effort = difficulty if config.curriculum == "within_clusters" else np.zeros(len(clusters))
    queues = {int(number): sorted((int(row) for row in candidates[clusters[candidates] == number]),
                                  key=lambda row: (effort[row], tie[row]))
              for number in np.unique(clusters[candidates])}
    thinned = _thin(queues, per_epoch * config.batch_size)
    chosen = {row for queue in thinned.values() for row in queue}
    reason: ScheduleDropReason = "remainder" if per_epoch == full else "beyond_steps"
    dropped |= {int(row): reason for row in candidates if int(row) not in chosen}
    epoch_batches = _mix_tails(_draw(thinned, config, rng), config.tail_mix)
    total = min(config.steps or per_epoch * config.epochs, per_epoch * config.epochs)
    batches = np.concatenate([epoch_batches] * config.epochs)[:total]
    epoch = np.repeat(np.arange(config.epochs, dtype=np.int32), per_epoch)[:total]
    return Schedule(batches, epoch, dropped)


def _thin(queues: dict[int, list[int]], budget: int) -> dict[int, list[int]]:
    """Keep `budget` rows: of each cluster its share (largest remainder), evenly from easy to hard."""
    total = sum(map(len, queues.values()))
    exact = {number: len(queue) * budget / total for number, queue in queues.items()}
    quota = {number: int(share) for number, share in exact.items()}
    by_remainder = sorted(queues, key=lambda number: (quota[number] - exact[number], number))
    for number in by_remainder[: budget - sum(quota.values())]:
        quota[number] += 1
    return {number: [queue[i] for i in np.linspace(0, len(queue) - 1, quota[number]).round().astype(int)]
            for number, queue in queues.items() if quota[number]}


def _draw(queues: dict[int, list[int]], config: ScheduleConfig, rng: np.random.Generator) -> np.ndarray:
    """Batches [n, batch_size], each drawn from `clusters_per_batch` clusters that take turns."""
    size = {number: len(queue) for number, queue in queues.items()}
    used = dict.fromkeys(queues, 0)
    luck = dict(zip(queues, rng.random(len(queues)), strict=True))

    def left(number: int) -> float:
        return 1 - used[number] / size[number]

    batches = []
    for _ in range(sum(size.values()) // config.batch_size):
        waiting = sorted((n for n in queues if used[n] < size[n]), key=lambda n: (-left(n), luck[n]))
        drawing, waiting = waiting[: config.clusters_per_batch], waiting[config.clusters_per_batch :]
        batch: list[int] = []
        turn = 0
        while len(batch) < config.batch_size:
            number = drawing[turn % len(drawing)]
            batch.append(queues[number][used[number]])
            used[number] += 1
            if used[number] < size[number]:
                turn += 1
            elif waiting:
                drawing[turn % len(drawing)] = waiting.pop(0)  # an empty queue hands its turn on
                turn += 1
            else:
                drawing.remove(number)
        batches.append(batch)
    return np.array(batches, dtype=np.int64)


def _mix_tails(batches: np.ndarray, share: float) -> np.ndarray:
    """Exchange the last `share` of each batch with the first of the next one."""
    mixed = batches.copy()
    count = min(round(share * batches.shape[1]), batches.shape[1] // 2)
    if count:
        for i in range(len(mixed) - 1):
            mixed[i, -count:], mixed[i + 1, :count] = mixed[i + 1, :count].copy(), mixed[i, -count:].copy()
    return mixed
