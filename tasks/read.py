"""Stage `read`: prompt files → a prompt table, duplicates, conflicts, contamination and overlong prompts marked."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from saerl_core import artifact, models, prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DataConfig
from tasks.caching import stage

TABLE = "prompts.parquet"


@stage("read", prompts.VERSION)
def read(root: Path, data_path: Path, heldout_path: Path | None, policy_path: Path, data: DataConfig,
         max_prompt_tokens: int, trust_remote_code: bool, data_hash: str, heldout_hash: str | None,
         policy_hash: str) -> ArtifactRef:
    """Read, validate and mark the prompts. The hashes stand for the paths in the cache key."""
    heldout = prompts.read_heldout(heldout_path, data) if heldout_path else None
    table = prompts.read_prompts(data_path, data, heldout)
    tokenizer = models.load_tokenizer(policy_path, trust_remote_code=trust_remote_code)
    table = prompts.mark_too_long(
        table, lambda messages: len(models.render(tokenizer, messages, chat_template=True)), max_prompt_tokens)
    with artifact.staging(root / "artifacts") as staged:
        table.write_parquet(staged / TABLE)
        return artifact.seal(staged, "prompts", {"stage": "read", "rows": table.height})


def load_table(ref: ArtifactRef) -> pl.DataFrame:
    """The whole prompt table, all rows of the file."""
    return pl.read_parquet(ref.path / TABLE)


def load_usable(ref: ArtifactRef) -> pl.DataFrame:
    """The rows that reading did not rule out: what all further stages work on, in the file's order."""
    return prompts.usable(load_table(ref))
