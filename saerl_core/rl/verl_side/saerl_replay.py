"""verl's replay buffer, writing down which prompts the trainer takes for every step, and how they were rewarded.

The trainer trains on exactly what `sample` returns, and each answer in it carries its reward and still its row's
`extra_info`. So what is recorded here is what was consumed, and not what a file or a loader should have given.
Selected by `trainer.v1.sampler.custom_sampler`; its settings come through `trainer.v1.sampler.sampler_kwargs`:

    consumed_dir   folder for one JSON file a step; a step that is run again after a crash replaces its file
    poll_interval  seconds between looks at the queue (verl's own is 2.0, most of a step on a toy model)
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class RecordingReplayBuffer(ReplayBuffer):
    """One JSON file per training step: prompt ids and keys in the order of their rows, and for each the number of its
    answers and the sum of their rewards."""

    def __init__(self, *, sampler_kwargs: Any, **settings: Any) -> None:
        super().__init__(
            sampler_kwargs=sampler_kwargs, poll_interval=float(sampler_kwargs["poll_interval"]), **settings
        )
        self._consumed_dir = Path(sampler_kwargs["consumed_dir"])

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if partition_id == "train":
            data = transfer_queue.kv_batch_get(
                keys=batch.keys, partition_id=partition_id, select_fields=["extra_info", "rm_scores"]
            )
            rows: list[Any] = [getattr(info, "data", info) for info in data["extra_info"]]
            self._record(global_steps, rows, [float(scores.sum()) for scores in data["rm_scores"]])
            # One update takes the whole batch, so its order decides only padding, which is less between alike lengths,
            # and the last bits of sums, which are the same in every run because the order is.
            sessions = [int(key.rsplit("_", 2)[1]) for key in batch.keys]  # verl's keys: prompt_answer_part
            order = [(tag["seq_len"], int(row["index"]), session)
                     for tag, row, session in zip(batch.tags, rows, sessions, strict=True)]
            batch.reorder(sorted(range(len(order)), key=order.__getitem__))
        return batch, metrics

    def _record(self, step: int, rows: list[Any], scores: list[float]) -> None:
        rewards: dict[tuple[int, str, str], list[float]] = defaultdict(list)
        for row, score in zip(rows, scores, strict=True):
            rewards[int(row["index"]), str(row["id"]), str(row["key"])].append(score)
        ordered = sorted(rewards)
        record = {
            "step": step,
            "ids": [prompt_id for _, prompt_id, _ in ordered],
            "keys": [key for _, _, key in ordered],
            "answers": [len(rewards[row]) for row in ordered],
            "rewards": [sum(rewards[row]) for row in ordered],
        }
        self._consumed_dir.mkdir(parents=True, exist_ok=True)
        target = self._consumed_dir / f"step-{step:06d}.json"
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(target)
