"""Stage `read`: prompt files → a prompt table; what must not be trained on is marked.

That is: duplicates, conflicting answers, contamination, overlong prompts, and answers that no response can meet.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from saerl_core import artifact, models, prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DataConfig, PolicyConfig
from saerl_core.rl import verifiers
from saerl_core.rl.verifiers import Verifier
from tasks.caching import stage

TABLE = "prompts.parquet"


@stage("read", prompts.VERSION)
def read(root: Path, data_path: Path, heldout_path: Path | None, policy_path: Path, base: Path, data: DataConfig,
         policy: PolicyConfig, data_hash: str, heldout_hash: str | None, policy_hash: str,
         verifier: str) -> ArtifactRef:
    """Read, validate and mark the prompts. The hashes, and the verifier's identity, stand for the paths in the key."""
    heldout = prompts.read_heldout(heldout_path, data) if heldout_path else None
    table = prompts.read_prompts(data_path, data, heldout)
    table, _ = mark_unverifiable(table, verifiers.load(policy, base))
    tokenizer = models.load_tokenizer(policy_path, trust_remote_code=policy.trust_remote_code)
    table = prompts.mark_too_long(
        table, lambda messages: len(models.render(tokenizer, messages, chat_template=True)), policy.max_prompt_tokens)
    with artifact.staging(root / "artifacts") as staged:
        table.write_parquet(staged / TABLE)
        return artifact.seal(staged, "prompts", {"stage": "read", "rows": table.height})


def mark_unverifiable(table: pl.DataFrame, verifier: Verifier) -> tuple[pl.DataFrame, str]:
    """Mark usable rows whose reference answer the verifier does not accept as its own answer.

    Returns:
        The table, and a note where the verifier cannot be asked.
    """
    refused, note = verifiers.unverifiable(table["answer"].to_list(), verifier)
    reason = pl.when(pl.col("drop_reason").is_null() & pl.Series(refused, dtype=pl.Boolean)).then(
        pl.lit("unverifiable_answer")).otherwise(pl.col("drop_reason"))
    return table.with_columns(drop_reason=reason), note


def load_table(ref: ArtifactRef) -> pl.DataFrame:
    """The whole prompt table, all rows of the file."""
    return pl.read_parquet(ref.path / TABLE)


def load_usable(ref: ArtifactRef) -> pl.DataFrame:
    """The rows that reading did not rule out: what all further stages work on, in the file's order."""
    return prompts.usable(load_table(ref))
