"""Stage `heldout`: the evaluation set → rows in verl's schema, for validations during training and for evaluation."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from saerl_core import artifact, prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DataConfig
from saerl_core.manifest import heldout_frame
from tasks.caching import stage

ROWS = "heldout.parquet"


@stage("heldout", prompts.VERSION)
def heldout(root: Path, files: tuple[Path, ...], data: DataConfig, data_hash: str) -> ArtifactRef:
    """Read and validate the evaluation set. The hash stands for the paths in the cache key."""
    assert data.heldout is not None
    frame = heldout_frame(prompts.read_table(files, data.heldout, data))
    with artifact.staging(root / "artifacts") as staged:
        frame.write_parquet(staged / ROWS)
        return artifact.seal(staged, "heldout", {"stage": "heldout", "rows": frame.height})


def load_chats(ref: ArtifactRef, count: int) -> tuple[list[list[dict[str, str]]], list[str]]:
    """(messages, answers) of the first `count` rows."""
    frame = pl.read_parquet(ref.path / ROWS).head(count)
    return frame["prompt"].to_list(), frame["reward_model"].struct.field("ground_truth").to_list()
