"""Stage `heldout`: the evaluation set → rows in verl's schema. Stage `validation`: those that verl answers during
training, as often as it shall."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from saerl_core import artifact, prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DataConfig, TrainConfig
from saerl_core.manifest import heldout_frame
from saerl_core.rl import validations
from tasks.caching import stage

ROWS = "heldout.parquet"
ANSWERED = "validation.parquet"
VERSION = prompts.VERSION + 1  # the second counts changes of the rows' schema here


@stage("heldout", VERSION)
def heldout(root: Path, files: tuple[Path, ...], data: DataConfig, data_hash: str) -> ArtifactRef:
    """Read and validate the evaluation set. The hash stands for the paths in the cache key."""
    assert data.heldout is not None
    frame = heldout_frame(prompts.read_table(files, data.heldout, data))
    with artifact.staging(root / "artifacts") as staged:
        frame.write_parquet(staged / ROWS)
        return artifact.seal(staged, "heldout", {"stage": "heldout", "rows": frame.height})


@stage("validation", validations.VERSION)
def validation(root: Path, heldout: ArtifactRef, train: TrainConfig) -> ArtifactRef:
    """Repeat the first held-out rows for the answers that each validation samples."""
    rows = validations.validation_rows(pl.read_parquet(heldout.path / ROWS), train)
    with artifact.staging(root / "artifacts") as staged:
        rows.write_parquet(staged / ANSWERED)
        return artifact.seal(staged, "validation", {"stage": "validation", "rows": rows.height})


def load_chats(ref: ArtifactRef, count: int) -> tuple[list[list[dict[str, str]]], list[str]]:
    """(messages, answers) of the first `count` rows."""
    frame = pl.read_parquet(ref.path / ROWS).head(count)
    return frame["prompt"].to_list(), frame["reward_model"].struct.field("ground_truth").to_list()
