"""Flow `curate`: a prompt file → a manifest. Every stage is cached by the content of what goes into it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task, flow
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel

from flows.check import check_inputs
from flows.publish import publish_manifest, tag_run
from flows.stages import StageRecord, record, run_stage
from saerl_core import prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import RunConfig
from saerl_core.locks import in_use
from saerl_core.schedule import check_batches
from tasks import manifest as manifests
from tasks.agreement import agreement, load_agreement
from tasks.cluster import cluster, find_previous
from tasks.cluster import describe as describe_clusters
from tasks.difficulty import difficulty
from tasks.extract import kept_segments, run_extraction
from tasks.inputs import Inputs, fingerprint
from tasks.label import label, load_labels, load_pass_rates
from tasks.likelihood import likelihood
from tasks.near_duplicates import near_duplicates
from tasks.quality import corrupt, load_suspicion, quality, suspicion
from tasks.read import load_reasons, read
from tasks.scores import load_scores

R = TypeVar("R")


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


TWO_WORKERS: Any = ThreadPoolTaskRunner(max_workers=2)
"""One shard is on the device, which it fills; the next is tokenised meanwhile, and waits."""


@flow(name="curate", flow_run_name="curate · {config.name}", persist_result=False,
      task_runner=TWO_WORKERS)
def curate(config: RunConfig) -> Curated:
    """Curate a prompt set into a manifest."""
    check_inputs(config, train=False)
    with in_use(config.root):
        return _curate(config)


def _curate(config: RunConfig) -> Curated:
    root = config.root
    tag_run(f"data:{config.data.name}")
    stages: list[StageRecord] = []
    read_from: list[ArtifactRef] = []

    def ran(stage: Task[..., R], *args: Any, size: str, describe: Callable[[R], str] | None = None) -> R:
        result, entry = run_stage(config, stage, *args, size=size, describe=describe)
        stages.append(entry)
        return result

    def extracted(source: ArtifactRef, name: str) -> tuple[ArtifactRef, int]:
        started = time.monotonic()
        found = run_extraction(root, inputs, source, config.features, name)
        note = f"{found.read} prompts read" if found.read else "all prompts in the feature store"
        stages.append(record(name, cached=found.read == 0, seconds=time.monotonic() - started, note=note,
                             artifacts=[found.features]))
        read_from.append(source)
        return found.features, found.read

    inputs = ran(fingerprint, config, size="data, reader, SAE, policy",
                 describe=lambda found: f"layer {found.layer} of {found.layers}")
    previous = find_previous(config, inputs.encoder_hash, inputs.model_hash, inputs.layer)
    table = ran(read, root, inputs.data, inputs.evaluations, inputs.policy, Path(config.base), config.data,
                config.hygiene, config.policy, inputs.data_hash, inputs.evaluation_hashes, inputs.policy_hash,
                inputs.verifier, size=inputs.data[0].name, describe=_usable_note)
    usable = _count_usable(config, table)
    features, read_now = extracted(table, "extract")
    if config.hygiene.sae_similarity is not None:
        table = ran(near_duplicates, root, table, features, config.hygiene, size=_usable_note(table),
                    describe=_usable_note)
        usable = _count_usable(config, table)
        features, _ = extracted(table, "gather what is left")
    size = f"{usable:,} prompts"
    clusters = ran(cluster, root, features, config.clusters, previous, size=size, describe=describe_clusters)

    labels, likelihoods = None, None
    if config.labels.source != "none":
        labels = ran(label, root, table, clusters, inputs.policy, inputs.policy_hash, Path(config.base),
                     inputs.verifier, config.labels, config.policy, size=_labels_size(config, usable),
                     describe=_labels_note)
    keys_by = config.quality.keys_by
    if config.difficulty.method == "nll" or keys_by == "likelihood":
        likelihoods = ran(likelihood, root, table, inputs.policy, inputs.policy_hash, config.quality.answer_format,
                          config.quality.seed, config.policy.trust_remote_code, size=size)
    hard = ran(difficulty, root, features, table, labels, likelihoods, inputs.rewards, inputs.rewards_hash,
               config.difficulty, size=size, describe=_why)

    damaged, damaged_features, damaged_now = None, None, 0
    if config.quality.damages:
        damaged = ran(corrupt, root, table, config.quality, config.data.instruction,
                      size=f"{min(config.quality.count, usable):,} copies")
        damaged_features, damaged_now = extracted(damaged, "extract damaged copies")
    good = ran(quality, root, features, table, labels, damaged, damaged_features, config.quality, size=size,
               describe=_why)
    suspects = None
    if keys_by is not None:
        evidence = likelihoods if keys_by == "likelihood" else ran(
            agreement, root, table, hard, good, inputs.policy, inputs.policy_hash, Path(config.base), inputs.verifier,
            config.quality, config.labels, config.policy, config.schedule,
            size=f"what is left x {config.quality.agreement_samples} answers", describe=_judged_note)
        suspects = ran(suspicion, root, evidence, config.quality, size=size,
                       describe=lambda ref: load_suspicion(ref)[1]["why"])

    made = ran(manifests.manifest, root, inputs, config, table, features, clusters, labels, hard, good, suspects,
               manifests.curation_hash(config, inputs), size=size, describe=lambda ref: ref.path.name)
    _show(made)
    with kept_segments(inputs.store, read_from) as segments:
        publish_manifest(config, made.path, stages, segments)
    return Curated(manifest=made, id=made.path.name, inputs=inputs, prompts_read_by_model=read_now,
                   damaged_copies_read=damaged_now, stages=stages)


def _count_usable(config: RunConfig, table: ArtifactRef) -> int:
    """Usable prompts. Too few are told before the reader starts, with what became of the others."""
    rows = load_reasons(table)
    usable = prompts.usable(rows).height
    check_batches(config.schedule, usable, prompts.drop_counts(rows))
    return usable


def _usable_note(table: ArtifactRef) -> str:
    return f"{prompts.usable(load_reasons(table)).height} usable prompts"


def _labels_size(config: RunConfig, usable: int) -> str:
    count = f"{min(config.labels.count, usable):,} prompts"
    return f"{count} x {config.labels.samples} answers" if config.labels.source in ("rollouts", "server") else count


def _labels_note(labels: ArtifactRef) -> str:
    _, rates = load_pass_rates(labels)
    doubtful = load_labels(labels)["doubtful"].sum()
    return f"{len(rates)} prompts, mean pass rate {rates.mean():.2f}" + (f", {doubtful} doubtful" if doubtful else "")


def _judged_note(found: ArtifactRef) -> str:
    known = load_agreement(found)
    return f"{known.height} prompts answered, {known['agreement'].is_not_null().sum()} with rewards that differ"


def _why(scores: ArtifactRef) -> str:
    return load_scores(scores)[1]["why"]


def _show(made: ArtifactRef) -> None:
    """The manifest's figures and plots, as an artifact of this run."""
    text = (made.path / manifests.SUMMARY).read_text(encoding="utf-8")
    where = f"\n\nManifest: `{made.path}`\n\nReport page: `{made.path / 'report.html'}`\n"
    create_markdown_artifact(key="curation", markdown=text + where, description=f"manifest {made.path.name}")
