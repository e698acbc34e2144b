"""verl's replay buffer, writing down which prompts the trainer takes for every step, and how they were rewarded; and
of every validation, how each held-out answer was.

The trainer trains on exactly what `sample` returns, and each answer in it carries its reward and still its row's
`extra_info`. So what is recorded here is what was consumed, and not what a file or a loader should have given.
Selected by `trainer.v1.sampler.custom_sampler`; its settings come through `trainer.v1.sampler.sampler_kwargs`:

    consumed_dir   folder for one JSON file a step; a step that is run again after a crash replaces its file
    validated_dir  the same for validations
    poll_interval  seconds between looks at the queue (verl's own is 2.0, most of a step on a toy model)
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class RecordingReplayBuffer(ReplayBuffer):
    """One JSON file per training step: prompt ids and keys in the order of their rows, and for each the number of its
    answers and the sum of their rewards. One per validation: of each row its id, whether it was answered greedily, and
    its reward."""

    def __init__(self, *, sampler_kwargs: Any, **settings: Any) -> None:
        super().__init__(
            sampler_kwargs=sampler_kwargs, poll_interval=float(sampler_kwargs["poll_interval"]), **settings
        )
        self._consumed_dir = Path(sampler_kwargs["consumed_dir"])
        self._validated_dir = Path(sampler_kwargs["validated_dir"])

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if partition_id == "train":
            answers = _rewarded_rows(batch)
            _write(self._consumed_dir, global_steps, _consumed(answers))
            batch.reorder(_training_order(batch, answers))
        else:
            _write(self._validated_dir, global_steps, _validated(_rewarded_rows(batch)))
        return batch, metrics


def _rewarded_rows(batch: Any) -> list[tuple[dict[str, Any], float]]:
    """Of each answer its row's `extra_info` and its reward."""
    data = transfer_queue.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_info", "rm_scores"]
    )
    infos: Any = data["extra_info"]
    return [(getattr(info, "data", info), float(scores.sum()))
            for info, scores in zip(infos, data["rm_scores"], strict=True)]


def _training_order(batch: Any, answers: list[tuple[dict[str, Any], float]]) -> list[int]:
    """Places of the answers, prompt by prompt: first the prompts whose answers are rewarded alike, shortest first, then
    the others, longest first.

    `saerl_cpu_engine` reads a prompt once for its answers in a micro-batch, and saves the backward pass of
    micro-batches without any advantage; alike lengths side by side save padding. One update takes the whole batch, so
    its order changes the result only in the last bits of sums; these are equal in equal runs because the order is.
    """
    rewards: dict[int, set[float]] = defaultdict(set)
    tokens: dict[int, int] = defaultdict(int)
    for tag, (row, reward) in zip(batch.tags, answers, strict=True):
        rewards[int(row["index"])].add(reward)
        tokens[int(row["index"])] += tag["seq_len"]
    order = []
    for key, (row, _) in zip(batch.keys, answers, strict=True):
        prompt = int(row["index"])
        number = int(key.rsplit("_", 2)[1])  # verl's keys: prompt_answer_part
        differ = len(rewards[prompt]) > 1
        order.append((differ, -tokens[prompt] if differ else tokens[prompt], prompt, number))
    return sorted(range(len(order)), key=order.__getitem__)


def _consumed(answers: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    rewards: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for row, reward in answers:
        rewards[int(row["index"]), str(row["id"]), str(row["key"])].append(reward)
    ordered = sorted(rewards)
    return {
        "ids": [prompt_id for _, prompt_id, _ in ordered],
        "keys": [key for _, _, key in ordered],
        "answers": [len(rewards[row]) for row in ordered],
        "rewards": [sum(rewards[row]) for row in ordered],
    }


def _validated(answers: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    ordered = sorted((int(row["index"]), str(row["id"]), bool(row.get("greedy")), reward) for row, reward in answers)
    return {
        "ids": [prompt_id for _, prompt_id, _, _ in ordered],
        "greedy": [greedy for _, _, greedy, _ in ordered],
        "rewards": [reward for _, _, _, reward in ordered],
    }


def _write(folder: Path, step: int, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:06d}.json"
    temporary = target.with_suffix(".tmp")
    record = {"step": step, **record}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()  # as `saerl_core.sealed` reads it
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.replace(target)
