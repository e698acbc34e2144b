"""Stage `label`: a subset of the prompts → pass rates, by the verifier that also gives the RL reward, or a stand-in.

The artifact holds `labels.parquet` with the columns `row` (among the usable prompts), `pass_rate`, `samples` (null
where it is not known) and `doubtful`. Its header says what `pass_rate` really is (`target`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from saerl_core import artifact, keyed, labels
from saerl_core.artifact import ArtifactRef
from saerl_core.config import LabelsConfig, PolicyConfig, ServerConfig
from saerl_core.errors import ConfigError, DataError
from saerl_core.rl import verifiers
from saerl_core.rl.verifiers import Verifier
from tasks import cluster
from tasks.caching import stage
from tasks.limits import device_slot
from tasks.progress import Progress
from tasks.read import load_usable

LABELS = "labels.parquet"
_TARGETS = {
    "rollouts": "measured pass rate",
    "server": "measured pass rate",
    "column": "pass rate given with the data",
    "level": "stand-in: 1 - mid-rank of the level",
}
_SCHEMA = {"row": pl.Int64, "pass_rate": pl.Float64, "samples": pl.Int64, "doubtful": pl.Boolean}
_CHUNK_PROMPTS = 100
"""What an interruption can lose."""
_FEWEST = 10

Respond = Callable[[pl.DataFrame], list[list[str]]]
"""Rows of the prompt table → sampled answers to each."""


@stage("label", labels.VERSION)
def label(root: Path, table: ArtifactRef, clusters: ArtifactRef, policy_path: Path, policy_hash: str, base: Path,
          verifier: str, config: LabelsConfig, policy: PolicyConfig) -> ArtifactRef:
    """Label prompts. `verifier` is the identity of `policy.verifier`, found from the folder `base`."""
    usable = load_usable(table)
    if config.source == "column":
        found = _given(usable, "pass_rate", lambda column: column)
        found = found.with_columns(doubtful=pl.Series(labels.doubt_given(
            found["pass_rate"].to_numpy(), usable["answer"].gather(found["row"]).to_list())))
    elif config.source == "level":
        found = _given(usable, "level", labels.rate_from_level)
    else:
        rows = labels.choose(usable["key"].to_list(), cluster.load_labels(clusters), config.count, config.seed)
        found = _measured(usable[rows], rows, root / "labels", policy_path, policy_hash, verifiers.load(policy, base),
                          config, policy)
    if config.shuffle:
        found = labels.shuffled(found, config.seed)
    doubtful = int(found["doubtful"].sum())
    if found.height - doubtful < _FEWEST:
        raise DataError(f"labels.source is {config.source!r}: {found.height - doubtful} usable prompts have a label "
                        f"that is not doubtful, {_FEWEST} are needed")
    with artifact.staging(root / "artifacts") as staged:
        found.write_parquet(staged / LABELS)
        return artifact.seal(staged, "labels", {
            "stage": "label", "source": config.source, "target": target(config), "count": found.height,
            "doubtful": doubtful})


def target(config: LabelsConfig) -> str | None:
    """What the column `pass_rate` holds; None where nothing is labelled."""
    held = _TARGETS.get(config.source)
    return f"{held}, of another prompt drawn by lot" if held and config.shuffle else held


def load_labels(ref: ArtifactRef) -> pl.DataFrame:
    """All labels: `row` (among the usable prompts), `pass_rate`, `samples` (null: not known), `doubtful`."""
    return pl.read_parquet(ref.path / LABELS)


def load_pass_rates(ref: ArtifactRef) -> tuple[np.ndarray, np.ndarray]:
    """(row numbers among the usable prompts, pass rates) of the labels that are not doubtful."""
    found = load_labels(ref).filter(~pl.col("doubtful"))
    return found["row"].to_numpy(), found["pass_rate"].to_numpy()


def api_key(server: ServerConfig) -> str | None:
    """The key that `labels.server.api_key_env` names, from the environment.

    Raises:
        ConfigError: the variable is not set, or holds what cannot be a key.
    """
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env, "").strip()  # of what a file's last line leaves
    if not key:
        raise ConfigError(f"labels.server.api_key_env: the environment variable {server.api_key_env} is not set")
    if not (key.isascii() and key.isprintable()):  # else the HTTP library quotes it in its error
        raise ConfigError(f"labels.server.api_key_env: the environment variable {server.api_key_env} holds characters "
                          "that no key has")
    return key


def _given(usable: pl.DataFrame, column: str, rate: Callable[[np.ndarray], np.ndarray]) -> pl.DataFrame:
    """Labels of all prompts that have a value in a column of the prompt table."""
    rows = usable[column].is_not_null().arg_true()
    values = usable[column].gather(rows).to_numpy()
    if len(np.unique(values)) < 2:
        raise DataError(f"data.columns.{column}: no two of {usable.height} usable prompts differ in it, so "
                        "nothing can be learned from it")
    return pl.DataFrame({"row": rows, "pass_rate": rate(values), "samples": None, "doubtful": False}, schema=_SCHEMA)


def _measured(chosen: pl.DataFrame, rows: np.ndarray, stores: Path, policy_path: Path, policy_hash: str,
              verifier: Verifier, config: LabelsConfig, policy: PolicyConfig) -> pl.DataFrame:
    """Labels of the chosen prompts: what is known of them, and the rest in chunks, each kept once it is done."""
    sampling = {"samples": config.samples, "seed": config.seed, "temperature": config.temperature,
                "top_p": config.top_p, "verifier": verifier.identity,
                "max_response_tokens": policy.max_response_tokens}
    if config.server is not None and config.source == "server":
        store = stores / labels.store_name(hashlib.sha256(config.server.model.encode()).hexdigest(),
                                           {"source": "server", **sampling})
        respond = _from_server(config, config.server, policy)
    else:
        store = stores / labels.store_name(policy_hash, sampling)
        respond = _from_policy(config, policy_path, policy)
    measured = keyed.complete(
        store, labels.MEASURED, chosen,
        lambda chunk: labels.judge(chunk["key"].to_list(), respond(chunk), chunk["answer"].to_list(), verifier.score,
                                   verifiers.stated_answer),
        chunk_rows=_CHUNK_PROMPTS, progress=Progress("label", "prompts"))
    doubtful = (np.zeros(len(rows), dtype=bool) if config.doubt_agreement is None
                else labels.doubt_measured(measured, config.doubt_agreement))
    return measured.select(pl.Series("row", rows), "pass_rate", "samples", pl.Series("doubtful", doubtful))


def _from_policy(config: LabelsConfig, policy_path: Path, policy: PolicyConfig) -> Respond:
    from saerl_core.rl import rollouts

    loaded: list[rollouts.Policy] = []  # at the first chunk that has anything to do

    def respond(chunk: pl.DataFrame) -> list[list[str]]:
        with device_slot(rollouts.default_device()):
            if not loaded:
                loaded.append(rollouts.load_policy(policy_path, trust_remote_code=policy.trust_remote_code))
            return rollouts.sample_texts(
                loaded[0], chunk["messages"].to_list(), samples=config.samples, temperature=config.temperature,
                top_p=config.top_p, max_response_tokens=policy.max_response_tokens, seed=config.seed)

    return respond


def _from_server(config: LabelsConfig, server: ServerConfig, policy: PolicyConfig) -> Respond:
    from saerl_core.rl import server as client

    sampling = client.Sampling(config.samples, config.temperature, config.top_p, policy.max_response_tokens)

    def respond(chunk: pl.DataFrame) -> list[list[str]]:
        seeds = [labels.draw(key, config.seed) % 2**31 for key in chunk["key"]]
        return client.sample_texts(server, api_key(server), chunk["messages"].to_list(), seeds, sampling)

    return respond
