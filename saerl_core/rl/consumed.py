"""What verl really trained on, step by step.

The records are written inside the trainer by `verl_side/saerl_replay.py`, from the very answers that a step is
computed on. A step that was run again after a crash has replaced its record.
"""

from __future__ import annotations

import json
from pathlib import Path

from saerl_core.errors import ArtifactError


def consumed_batches(run_dir: Path) -> dict[int, list[str]]:
    """Prompt ids that each step trained on, in the order of their rows.

    Args:
        run_dir: The job's folder.

    Returns:
        Step (from 1) → ids.

    Raises:
        ArtifactError: a record is unreadable.
    """
    batches: dict[int, list[str]] = {}
    for path in sorted((run_dir / "consumed").glob("step-*.json")):
        record = _read(path)
        batches[record["step"]] = record["ids"]
    return batches


def answers_per_prompt(run_dir: Path) -> dict[int, list[int]]:
    """Number of answers that each step got for each of its prompts; fewer than asked for means that rollouts failed."""
    records = map(_read, sorted((run_dir / "consumed").glob("step-*.json")))
    return {record["step"]: record["answers"] for record in records}


def consumed_at(run_dir: Path, step: int) -> list[str] | None:
    """Prompt ids of one step; None where it has not been recorded."""
    path = run_dir / "consumed" / f"step-{step:06d}.json"
    return _read(path)["ids"] if path.exists() else None


def _read(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"step": int(record["step"]), "ids": list(record["ids"]), "answers": list(record["answers"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a record of consumed prompts: {error}") from error
