"""Stage `read`: prompt files → a prompt table, with copies, conflicts, contamination and overlong prompts marked."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from saerl_core import artifact, hygiene, models, prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DataConfig, HygieneConfig
from saerl_core.hygiene import EvaluationSet, Findings
from tasks.caching import stage

TABLE = "prompts.parquet"
FINDINGS = "hygiene.json"


@stage("read", prompts.VERSION * 100 + hygiene.VERSION)
def read(root: Path, files: tuple[Path, ...], evaluations: dict[str, tuple[Path, ...]], policy_path: Path,
         data: DataConfig, config: HygieneConfig, max_prompt_tokens: int, trust_remote_code: bool, data_hash: str,
         evaluation_hashes: dict[str, str], policy_hash: str) -> ArtifactRef:
    """Read, validate and mark the prompts. The hashes stand for the paths in the cache key."""
    sets = [EvaluationSet(name, prompts.read_table(evaluations[name], source, data))
            for name, source in data.evaluations().items()]
    table, findings = hygiene.mark(prompts.read_table(files, data, data), sets, config)
    tokenizer = models.load_tokenizer(policy_path, trust_remote_code=trust_remote_code)
    table = prompts.mark_too_long(
        table, lambda messages: len(models.render(tokenizer, messages, chat_template=True)), max_prompt_tokens)
    return seal_table(root, "read", table, findings)


def seal_table(root: Path, stage_name: str, table: pl.DataFrame, findings: Findings) -> ArtifactRef:
    """Keep a prompt table and what was found in it."""
    with artifact.staging(root / "artifacts") as staged:
        table.write_parquet(staged / TABLE)
        artifact.write_json(staged / FINDINGS, findings)
        return artifact.seal(staged, "prompts", {"stage": stage_name, "rows": table.height})


def load_table(ref: ArtifactRef) -> pl.DataFrame:
    """The whole prompt table, all rows of the file."""
    return pl.read_parquet(ref.path / TABLE)


def load_findings(ref: ArtifactRef) -> Findings:
    """What hygiene found in the prompts."""
    return json.loads((ref.path / FINDINGS).read_text(encoding="utf-8"))


def load_usable(ref: ArtifactRef) -> pl.DataFrame:
    """The rows that reading did not rule out: what all further stages work on, in the file's order."""
    return prompts.usable(load_table(ref))
