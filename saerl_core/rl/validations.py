"""Validations during training: the held-out rows that verl answers, and what it wrote down of each.

One validation holds sampled and greedy answers side by side; the row says which (`extra_info.greedy`), and SAERL's
agent loop obeys. The records are written inside the trainer by `verl_side/saerl_replay.py`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from saerl_core import sealed
from saerl_core.config import TrainConfig
from saerl_core.errors import ArtifactError

VERSION = 1
ANSWERS = {"id": pl.String, "greedy": pl.Boolean, "reward": pl.Float64}


def validation_rows(heldout: pl.DataFrame, config: TrainConfig) -> pl.DataFrame:
    """What one validation answers: each of the first `test_prompts` rows `test_samples` times, then once greedily.

    Args:
        heldout: Rows in verl's schema (`manifest.heldout_frame`).
        config: How many prompts and answers.
    """
    first = heldout.head(config.test_prompts)
    sampled, greedy = (
        first.with_columns(pl.col("extra_info").struct.with_fields(pl.lit(value).alias("greedy")))
        for value in (False, True)
    )
    return pl.concat([sampled] * config.test_samples + ([greedy] if config.test_greedy else []))


def validated_steps(config: TrainConfig, steps: int) -> list[int]:
    """Steps after which a job of so many steps validates; 0 is before the first."""
    regular = range(0 if config.test_first else config.test_every, steps, config.test_every)
    return [*regular, steps]


def is_validated(run_dir: Path, step: int) -> bool:
    """Whether a validation after this step has been written down, and can be read."""
    try:
        read_validation(run_dir, step)
    except ArtifactError:
        return False
    return True


def read_validation(run_dir: Path, step: int) -> pl.DataFrame:
    """The answers of one validation, in the order of the held-out rows.

    Returns:
        A frame of `ANSWERS`, one row an answer; `reward` is 1 for a right one, unless the verifier gives partial
        credit.

    Raises:
        ArtifactError: there is no such record, or it is unreadable.
    """
    path = _path(run_dir, step)
    try:
        record = _Record.model_validate(sealed.read(path))
        return pl.DataFrame({"id": record.ids, "greedy": record.greedy, "reward": record.rewards}, schema=ANSWERS)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing: the training did not validate after step {step}; delete {run_dir} to "
                            "train anew") from error
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:  # pydantic's errors are among the second
        raise ArtifactError(f"{path}: not a record of a validation: {' '.join(str(error).split())}; delete {run_dir} "
                            "to train anew") from error


class _Record(BaseModel):
    """One validation, as `verl_side/saerl_replay.py` writes it."""

    model_config = ConfigDict(extra="forbid")

    step: int
    ids: list[str]
    greedy: list[bool]
    rewards: list[float]


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / "validated" / f"step-{step:06d}.json"
