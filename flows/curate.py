"""Flow `curate`: a prompt file → a manifest. Every stage is cached by the content of what goes into it."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel

from flows.publish import publish_manifest, tag_run
from flows.stages import StageRecord, record, run_stage
from saerl_core.artifact import ArtifactRef
from saerl_core.config import RunConfig
from saerl_core.locks import in_use
from tasks import manifest as manifests
from tasks.cluster import cluster
from tasks.difficulty import difficulty
from tasks.extract import run_extraction
from tasks.inputs import Inputs, fingerprint
from tasks.label import label, load_pass_rates
from tasks.quality import corrupt, quality
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
    with in_use(config.root):
        return _curate(config)


def _curate(config: RunConfig) -> Curated:
    root = config.root
    tag_run(f"data:{config.data.name}")
    stages: list[StageRecord] = []
    inputs, entry = run_stage(config, fingerprint, config, size="data, reader, SAE, policy",
                              describe=lambda found: f"layer {found.layer} of {found.layers}")
    stages.append(entry)

    table, entry = run_stage(
        config, read, root, inputs.data, inputs.heldout, inputs.policy, config.data, config.policy.max_prompt_tokens,
        config.policy.trust_remote_code, inputs.data_hash, inputs.heldout_hash, inputs.policy_hash,
        size=inputs.data.name, describe=lambda ref: f"{load_usable(ref).height} usable prompts")
    stages.append(entry)
    usable = load_usable(table).height
    manifests.check_batches(config, usable)
    prompts = f"{usable:,} prompts"

    features, read_now, entry = _extract(config, inputs, table, "extract")
    stages.append(entry)
    clusters, entry = run_stage(config, cluster, root, features, config.clusters, size=prompts,
                                describe=lambda _: f"k = {config.clusters.k}")
    stages.append(entry)

    labels = None
    if config.labels.source != "none":
        labels, entry = run_stage(config, label, root, table, clusters, inputs.policy, inputs.policy_hash,
                                  config.labels, config.policy, size=_labels_size(config, usable),
                                  describe=_labels_note)
        stages.append(entry)
    hard, entry = run_stage(config, difficulty, root, features, labels, config.difficulty, size=prompts, describe=_why)
    stages.append(entry)

    damaged, damaged_features, damaged_now = None, None, 0
    if config.quality.method != "none":
        damaged, entry = run_stage(config, corrupt, root, table, config.quality, config.data.instruction,
                                   size=f"{min(config.quality.count, usable):,} copies")
        stages.append(entry)
        damaged_features, damaged_now, entry = _extract(config, inputs, damaged, "extract damaged copies")
        stages.append(entry)
    good, entry = run_stage(config, quality, root, features, damaged, damaged_features, config.quality, size=prompts,
                            describe=_why)
    stages.append(entry)

    made, entry = run_stage(config, manifests.manifest, root, inputs, config, table, features, clusters, labels, hard,
                            good, manifests.curation_hash(config, inputs), size=prompts,
                            describe=lambda ref: ref.path.name)
    stages.append(entry)
    _show(made)
    publish_manifest(config, made.path, stages)
    return Curated(manifest=made, id=made.path.name, inputs=inputs, prompts_read_by_model=read_now,
                   damaged_copies_read=damaged_now,
                   stages=stages)


def _extract(config: RunConfig, inputs: Inputs, source: ArtifactRef,
             name: str) -> tuple[ArtifactRef, int, StageRecord]:
    started = time.monotonic()
    found = run_extraction(config.root, inputs, source, config.features, name)
    note = f"{found.read} prompts read" if found.read else "all prompts in the feature store"
    return found.features, found.read, record(name, cached=found.read == 0, seconds=time.monotonic() - started,
                                              note=note, artifacts=[found.features, *found.segments])


def _labels_size(config: RunConfig, usable: int) -> str:
    count = f"{min(config.labels.count, usable):,} prompts"
    return f"{count} x {config.labels.samples} answers" if config.labels.source == "rollouts" else count


def _labels_note(labels: ArtifactRef) -> str:
    _, rates = load_pass_rates(labels)
    return f"{len(rates)} prompts, mean pass rate {rates.mean():.2f}"


def _why(scores: ArtifactRef) -> str:
    return load_scores(scores)[1]["why"]


def _show(made: ArtifactRef) -> None:
    """The manifest's figures and plots, as an artifact of this run."""
    text = (made.path / manifests.SUMMARY).read_text(encoding="utf-8")
    where = f"\n\nManifest: `{made.path}`\n\nReport page: `{made.path / 'report.html'}`\n"
    create_markdown_artifact(key="curation", markdown=text + where, description=f"manifest {made.path.name}")
