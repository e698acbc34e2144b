"""What one arm with one seed did, read from the records of its training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from saerl_core.config import TrainConfig
from saerl_core.rl.consumed import observed_rewards
from saerl_core.rl.validations import read_validation, validated_steps

GROUPS = ("level", "subject")


@dataclass(frozen=True)
class Trained:
    """One training of an arm: one round of it, or all."""

    manifest: Path
    run_dir: Path
    first_step: int
    """steps of the rounds before it"""
    steps: int


def accuracy_curve(rounds: list[Trained], config: TrainConfig) -> pl.DataFrame:
    """Accuracy at each evaluation.

    Returns:
        Columns `step`, `sampled`, `greedy`, ascending by step. Where a round ends, its own last evaluation counts, not
        the next one's first, which is of the same policy.

    Raises:
        ArtifactError: an evaluation is missing or unreadable.
    """
    rows = {}
    for part in reversed(rounds):
        for step in validated_steps(config, part.steps):
            answers = read_validation(part.run_dir, step)
            rows[part.first_step + step] = {
                "step": part.first_step + step,
                "sampled": answers.filter(~pl.col("greedy"))["reward"].mean(),
                "greedy": answers.filter("greedy")["reward"].mean(),
            }
    return pl.DataFrame([rows[step] for step in sorted(rows)])


def by_group(answers: pl.DataFrame, heldout: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Sampled accuracy by what the held-out set says of its prompts (`GROUPS`), where it says anything.

    Args:
        answers: Of one evaluation (`rl.validations.ANSWERS`).
        heldout: Rows in verl's schema, `extra_info` with `id`, `level` and `subject`.
    """
    about = heldout["extra_info"].struct.unnest().select("id", *GROUPS).unique("id")
    answers = answers.filter(~pl.col("greedy")).join(about, on="id", how="left")
    found = {}
    for group in GROUPS:
        means = answers.drop_nulls(group).group_by(group).agg(pl.col("reward").mean()).sort(group)
        if means.height > 1:
            found[group] = {f"{name:g}" if isinstance(name, float) else str(name): float(mean)
                            for name, mean in means.iter_rows()}
    return found


def batches(rounds: list[Trained]) -> pl.DataFrame:
    """What was trained on, step by step.

    Returns:
        Columns `step`, `difficulty` (predicted, mean), `level` (the data set's, mean; null without), `reward` (mean),
        `spread` (share of prompts that were answered both right and wrong), `clusters` (different ones).
    """
    found = []
    for part in rounds:
        rows = pl.read_parquet(part.manifest / "train.parquet", columns=["extra_info"])["extra_info"].struct.unnest()
        scores = pl.read_parquet(part.manifest / "scores.parquet", columns=["key", "level"]).unique("key")
        rows = rows.select("key", "cluster", "difficulty", step=pl.col("batch") + 1)
        seen = observed_rewards(part.run_dir).select("key", "step", rate=pl.col("successes") / pl.col("trials"))
        rows = rows.unique(["key", "step"]).join(scores, on="key", how="left")
        found.append(seen.join(rows, on=["key", "step"], how="left").group_by("step").agg(
            pl.col("difficulty").mean(), pl.col("level").cast(pl.Float64, strict=False).mean(),
            pl.col("rate").mean().alias("reward"), ((pl.col("rate") > 0) & (pl.col("rate") < 1)).mean().alias("spread"),
            pl.col("cluster").n_unique().alias("clusters"),
        ).sort("step").with_columns(pl.col("step") + part.first_step))
    return pl.concat(found)


def mean_over_seeds(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Step by step the mean of the other columns; null where no seed has a figure."""
    columns = [name for name in frames[0].columns if name != "step"]
    return pl.concat(frames).group_by("step").agg(pl.col(columns).cast(pl.Float64).mean()).sort("step")


def matrix(curves: list[pl.DataFrame], column: str) -> np.ndarray:
    """float [seeds, evaluations]."""
    return np.stack([curve[column].to_numpy() for curve in curves])
