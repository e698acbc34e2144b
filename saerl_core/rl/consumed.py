"""What verl really trained on, step by step, and how it was rewarded.

The records are written inside the trainer by `verl_side/saerl_replay.py`, from the very answers that a step is
computed on. A step that was run again after a crash has replaced its record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator

from saerl_core import sealed
from saerl_core.errors import ArtifactError
from saerl_core.hashing import hash_files

OBSERVED = {"key": pl.String, "id": pl.String, "step": pl.Int64, "successes": pl.Float64, "trials": pl.Int64}


def consumed_batches(run_dir: Path) -> dict[int, list[str]]:
    """Prompt ids that each step trained on, in the order of their rows.

    Args:
        run_dir: The job's folder.

    Returns:
        Step (from 1) → ids.

    Raises:
        ArtifactError: a record is unreadable.
    """
    return {record["step"]: record["ids"] for record in map(_read, _files(run_dir))}


def answers_per_prompt(run_dir: Path) -> dict[int, list[int]]:
    """Number of answers that each step got for each of its prompts; fewer than asked for means that rollouts failed."""
    return {record["step"]: record["answers"] for record in map(_read, _files(run_dir))}


def observed_rewards(run_dir: Path) -> pl.DataFrame:
    """How the policy fared on each prompt of each step, before that step's update.

    Args:
        run_dir: The folder of a training, finished or not.

    Returns:
        A frame of `OBSERVED`, one row for each prompt of each step, in the order of training: the row's key in the
        prompt table, its id, the step (from 1), the sum of its rewards, and the number of its answers.

    Raises:
        ArtifactError: there are no records, one is unreadable, or they hold no rewards.
    """
    files = _files(run_dir)
    if not files:
        raise ArtifactError(f"{run_dir}: no training has recorded its steps there; name a folder `runs/NAME` of a "
                            "workspace")
    rows: list[dict[str, Any]] = []
    for path in files:
        record = _read(path)
        if record["rewards"] is None:
            raise ArtifactError(f"{path}: holds no rewards: it was written by an older SAERL")
        for key, prompt_id, reward, answers in zip(record["keys"], record["ids"], record["rewards"],
                                                   record["answers"], strict=True):
            rows.append({"key": key, "id": prompt_id, "step": record["step"], "successes": reward, "trials": answers})
    return pl.DataFrame(rows, schema=OBSERVED)


def rewards_hash(run_dir: Path) -> str:
    """Content hash of a training's records: what a stage that reads them is cached by."""
    return hash_files(run_dir, _files(run_dir))


def consumed_at(run_dir: Path, step: int) -> list[str] | None:
    """Prompt ids of one step; None where it has not been recorded."""
    path = run_dir / "consumed" / f"step-{step:06d}.json"
    return _read(path)["ids"] if path.exists() else None


class _Record(BaseModel):
    """One step, as `verl_side/saerl_replay.py` writes it."""

    model_config = ConfigDict(extra="forbid")

    step: int
    ids: list[str]
    answers: list[int]
    keys: list[str] | None = None
    rewards: list[float] | None = None

    @model_validator(mode="after")
    def _one_of_each_a_prompt(self) -> Self:
        if not self.rewards:  # written by an older SAERL
            self.keys = self.rewards = None
        columns = (self.answers, self.keys, self.rewards)
        if any(column is not None and len(column) != len(self.ids) for column in columns):
            raise ValueError("ids, answers, keys and rewards are not as many")
        if self.rewards is not None and self.keys is None:
            raise ValueError("rewards without keys")
        return self


def _files(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "consumed").glob("step-*.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return _Record.model_validate(sealed.read(path)).model_dump()
    except (OSError, ValueError) as error:  # pydantic's errors are among the latter
        raise ArtifactError(f"{path}: not a record of consumed prompts: {' '.join(str(error).split())}") from error
