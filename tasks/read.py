"""Stage `read`: prompt files → a prompt table; what must not be trained on is marked.

That is: copies, conflicting answers, contamination, overlong prompts, and answers that no response can meet.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from saerl_core import artifact, hygiene, models, prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DataConfig, HygieneConfig, PolicyConfig
from saerl_core.feature_store import feature_key
from saerl_core.hygiene import EvaluationSet, Findings
from saerl_core.rl import verifiers
from tasks.caching import stage

TABLE = "prompts.parquet"
FINDINGS = "hygiene.json"


@stage("read", prompts.VERSION * 100 + hygiene.VERSION)
def read(root: Path, files: tuple[Path, ...], evaluations: dict[str, tuple[Path, ...]], policy_path: Path, base: Path,
         data: DataConfig, config: HygieneConfig, policy: PolicyConfig, data_hash: str,
         evaluation_hashes: dict[str, str], policy_hash: str, verifier: str) -> ArtifactRef:
    """Read, validate and mark the prompts. The hashes, and the verifier's identity, stand for the paths in the key."""
    sets = [EvaluationSet(name, prompts.read_table(evaluations[name], source, data))
            for name, source in data.evaluations().items()]
    table, findings = hygiene.mark(prompts.read_table(files, data, data), sets, config)
    table, _ = verifiers.mark_unverifiable(table, verifiers.load(policy, base))
    tokenizer = models.load_tokenizer(policy_path, trust_remote_code=policy.trust_remote_code)
    table = prompts.mark_too_long(
        table, lambda chats: [len(ids) for ids in models.render_all(tokenizer, chats, chat_template=True)],
        policy.max_prompt_tokens)
    return seal_table(root, "read", with_feature_keys(table), findings)


def with_feature_keys(table: pl.DataFrame) -> pl.DataFrame:
    """The table and under which key the feature store knows each prompt: made once, looked up in every run."""
    keys = [feature_key(messages) for messages in table["messages"].to_list()]
    return table.with_columns(pl.Series("feature_key", keys, dtype=pl.String))


def seal_table(root: Path, stage_name: str, table: pl.DataFrame, findings: Findings) -> ArtifactRef:
    """Keep a prompt table and what was found in it."""
    with artifact.staging(root / "artifacts") as staged:
        table.write_parquet(staged / TABLE)
        artifact.write_json(staged / FINDINGS, findings)
        return artifact.seal(staged, "prompts", {"stage": stage_name, "rows": table.height})


def load_table(ref: ArtifactRef) -> pl.DataFrame:
    """The whole prompt table, all rows of the file."""
    return pl.read_parquet(ref.path / TABLE)


def load_reasons(ref: ArtifactRef) -> pl.DataFrame:
    """Of the whole prompt table, only why each row was dropped: what counting needs."""
    return pl.read_parquet(ref.path / TABLE, columns=["drop_reason"])


def load_findings(ref: ArtifactRef) -> Findings:
    """What hygiene found in the prompts."""
    return json.loads((ref.path / FINDINGS).read_text(encoding="utf-8"))


def load_usable(ref: ArtifactRef) -> pl.DataFrame:
    """The rows that reading did not rule out: what all further stages work on, in the file's order."""
    return prompts.usable(load_table(ref))
