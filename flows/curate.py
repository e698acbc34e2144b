"""Flow `curate`: a prompt file → a manifest. Every stage is cached by the content of what goes into it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel

from flows.stages import StageRecord, record, run_stage
from saerl_core.artifact import ArtifactRef
from saerl_core.config import RunConfig
from tasks import manifest as manifests
from tasks.cluster import cluster, find_previous
from tasks.cluster import describe as describe_clusters
from tasks.difficulty import difficulty
from tasks.extract import run_extraction
from tasks.inputs import Inputs, fingerprint
from tasks.label import label, load_labels, load_pass_rates
from tasks.likelihood import likelihood
from tasks.near_duplicates import near_duplicates
from tasks.quality import corrupt, load_suspicion, quality, suspicion
from tasks.read import load_usable, read
from tasks.scores import load_scores


class Curated(BaseModel):
    """What a curation gives."""

    manifest: ArtifactRef
    id: str
    inputs: Inputs
    prompts_read_by_model: int
    """prompts that went through the reader in this run; 0 when all features were there"""
    damaged_copies_read: int
    """the same for the quality probe's damaged copies"""
    stages: list[StageRecord]

    def figures(self) -> dict[str, Any]:
        """What an outcome says of the work that this curation took."""
        return {"prompts_read_by_model": self.prompts_read_by_model, "damaged_copies_read": self.damaged_copies_read,
                "stages": [entry.model_dump() for entry in self.stages]}


ONE_WORKER: Any = ThreadPoolTaskRunner(max_workers=1)
"""A forward pass already uses every core, or the whole GPU: shards queue."""


@flow(name="curate", flow_run_name="curate · {config.name}", persist_result=False,
      task_runner=ONE_WORKER)
def curate(config: RunConfig) -> Curated:
    """Curate a prompt set into a manifest."""
    root = config.root
    stages: list[StageRecord] = []
    inputs, entry = run_stage(config, fingerprint, config,
                              describe=lambda found: f"layer {found.layer} of {found.layers}")
    stages.append(entry)
    previous = find_previous(config, inputs.sae_hash, inputs.model_hash, inputs.layer)

    table, entry = run_stage(
        config, read, root, inputs.data, inputs.evaluations, inputs.policy, Path(config.base), config.data,
        config.hygiene, config.policy, inputs.data_hash, inputs.evaluation_hashes, inputs.policy_hash, inputs.verifier,
        describe=lambda ref: f"{load_usable(ref).height} usable prompts")
    stages.append(entry)
    manifests.check_batches(config, load_usable(table).height)

    features, read_now, entry = _extract(config, inputs, table, "extract")
    stages.append(entry)
    if config.hygiene.sae_similarity is not None:
        table, entry = run_stage(config, near_duplicates, root, table, features, config.hygiene,
                                 describe=lambda ref: f"{load_usable(ref).height} usable prompts")
        stages.append(entry)
        manifests.check_batches(config, load_usable(table).height)
        features, _, entry = _extract(config, inputs, table, "gather what is left")
        stages.append(entry)
    clusters, entry = run_stage(config, cluster, root, features, config.clusters, previous, describe=describe_clusters)
    stages.append(entry)

    labels = None
    if config.labels.source != "none":
        labels, entry = run_stage(config, label, root, table, clusters, inputs.policy, inputs.policy_hash,
                                  Path(config.base), inputs.verifier, config.labels, config.policy,
                                  describe=_labels_note)
        stages.append(entry)
    likelihoods = None
    if config.difficulty.method == "nll" or config.quality.suspect_answers:
        likelihoods, entry = run_stage(
            config, likelihood, root, table, inputs.policy, inputs.policy_hash, config.quality.answer_format,
            config.quality.seed, config.policy.trust_remote_code, describe=lambda _: "by the policy")
        stages.append(entry)
    hard, entry = run_stage(config, difficulty, root, features, table, labels, likelihoods, inputs.rewards,
                            inputs.rewards_hash, config.difficulty, describe=_why)
    stages.append(entry)

    damaged, damaged_features, damaged_now = None, None, 0
    if config.quality.method != "none" and config.quality.labels == "corruptions":
        damaged, entry = run_stage(config, corrupt, root, table, config.quality, config.data.instruction)
        stages.append(entry)
        damaged_features, damaged_now, entry = _extract(config, inputs, damaged, "extract damaged copies")
        stages.append(entry)
    good, entry = run_stage(config, quality, root, features, table, labels, damaged, damaged_features, config.quality,
                            describe=_why)
    stages.append(entry)
    suspects = None
    if likelihoods is not None and config.quality.suspect_answers:
        suspects, entry = run_stage(config, suspicion, root, likelihoods, config.quality,
                                    describe=lambda ref: load_suspicion(ref)[1]["why"])
        stages.append(entry)

    made, entry = run_stage(config, manifests.manifest, root, inputs, config, table, features, clusters, labels, hard,
                            good, suspects, manifests.curation_hash(config, inputs), describe=lambda ref: ref.path.name)
    stages.append(entry)
    _publish(made)
    return Curated(manifest=made, id=made.path.name, inputs=inputs, prompts_read_by_model=read_now,
                   damaged_copies_read=damaged_now,
                   stages=stages)


def _extract(config: RunConfig, inputs: Inputs, source: ArtifactRef,
             name: str) -> tuple[ArtifactRef, int, StageRecord]:
    started = time.monotonic()
    features, read_now = run_extraction(config.root, inputs, source, config.features, name)
    note = f"{read_now} prompts read" if read_now else "all prompts in the feature store"
    return features, read_now, record(name, cached=read_now == 0, seconds=time.monotonic() - started, note=note)


def _labels_note(labels: ArtifactRef) -> str:
    _, rates = load_pass_rates(labels)
    doubtful = load_labels(labels)["doubtful"].sum()
    return f"{len(rates)} prompts, mean pass rate {rates.mean():.2f}" + (f", {doubtful} doubtful" if doubtful else "")


def _why(scores: ArtifactRef) -> str:
    return load_scores(scores)[1]["why"]


def _publish(made: ArtifactRef) -> None:
    """The manifest's figures and plots, as an artifact of this run."""
    create_markdown_artifact(key="curation", markdown=(made.path / manifests.SUMMARY).read_text(encoding="utf-8"),
                             description=f"manifest {made.path.name}")
