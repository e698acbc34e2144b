"""Stage `label`: a subset of the prompts → measured pass rates, by the verifier that also gives the RL reward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from saerl_core import artifact, labels
from saerl_core.artifact import ArtifactRef
from saerl_core.config import LabelsConfig, PolicyConfig
from saerl_core.errors import DataError
from tasks import cluster
from tasks.caching import stage
from tasks.limits import device_slot
from tasks.progress import Progress
from tasks.read import load_usable

LABELS = "labels.parquet"
_CHUNK_PROMPTS = 100
"""What an interruption can lose."""


@stage("label", labels.VERSION)
def label(root: Path, table: ArtifactRef, clusters: ArtifactRef, policy_path: Path, policy_hash: str,
          config: LabelsConfig, policy: PolicyConfig) -> ArtifactRef:
    """Label prompts: from a column, or by sampling answers with the policy and verifying them."""
    from saerl_core.rl import rollouts

    usable = load_usable(table)
    if config.source == "column":
        rows = usable["pass_rate"].is_not_null().arg_true().to_numpy()
        rates = usable["pass_rate"].to_numpy()[rows]
        if len(rows) < 20:
            raise DataError(f"labels.source is 'column': {len(rows)} usable prompts have a pass rate, 20 are needed")
    else:
        rows = labels.choose(usable["key"].to_list(), cluster.load_labels(clusters), config.count, config.seed)
        sampling = {"samples": config.samples, "seed": config.seed, "verifier": policy.verifier,
                    "max_response_tokens": policy.max_response_tokens}
        store = root / "labels" / labels.store_name(policy_hash, sampling)
        with device_slot(rollouts.default_device()):
            rates = _measure(usable[rows], store, policy_path, config, policy)
    found = pl.DataFrame({"row": rows, "pass_rate": rates}, schema={"row": pl.Int64, "pass_rate": pl.Float64})
    with artifact.staging(root / "artifacts") as staged:
        found.write_parquet(staged / LABELS)
        return artifact.seal(staged, "labels", {"stage": "label", "source": config.source, "count": len(rows)})


def _measure(chosen: pl.DataFrame, store: Path, policy_path: Path, config: LabelsConfig,
             policy: PolicyConfig) -> list[float]:
    """Pass rates of the chosen prompts: those that are known, and the rest in chunks, each kept once it is done."""
    from saerl_core.rl import rollouts

    known = labels.read_store(store)
    progress = Progress("label", "prompts")
    loaded = None
    for start in range(0, chosen.height, _CHUNK_PROMPTS):  # fixed chunks: the same batches after a crash
        chunk = chosen[start : start + _CHUNK_PROMPTS].filter(~pl.col("key").is_in(list(known)))
        if chunk.height:
            loaded = loaded or rollouts.load_policy(policy_path, trust_remote_code=policy.trust_remote_code)
            correct = rollouts.sample_correct(
                loaded, chunk["messages"].to_list(), chunk["answer"].to_list(), samples=config.samples, temperature=1.0,
                max_response_tokens=policy.max_response_tokens, seed=config.seed)
            rates = correct.mean(axis=1).tolist()
            labels.write_store(store, chunk["key"].to_list(), rates)
            known |= dict(zip(chunk["key"], rates, strict=True))
        progress(min(start + _CHUNK_PROMPTS, chosen.height), chosen.height)
    return [known[key] for key in chosen["key"]]


def load_pass_rates(ref: ArtifactRef) -> tuple[np.ndarray, np.ndarray]:
    """(row numbers among the usable prompts, pass rates)."""
    found = pl.read_parquet(ref.path / LABELS)
    return found["row"].to_numpy(), found["pass_rate"].to_numpy()
