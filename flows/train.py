"""Flow `train`: a manifest → a policy trained on it by verl, measured before and after on the held-out set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.check import check_training
from flows.publish import publish, tag_run
from flows.stages import run_stage
from saerl_core import models, sources
from saerl_core.artifact import ArtifactRef, write_file
from saerl_core.config import RunConfig
from saerl_core.errors import ArtifactError
from saerl_core.locks import in_use
from saerl_core.manifest import read_manifest
from saerl_core.rl import verifiers
from saerl_core.rl.consumed import observed_rewards
from saerl_core.rl.evaluate import compare
from saerl_core.rl.metrics import read_metrics
from tasks.evaluate import evaluate, load_evaluation
from tasks.heldout import ANSWERED, heldout, validation
from tasks.train import Trained, plan_job
from tasks.train import train as train_stage


@flow(name="train", flow_run_name="train · {config.name}", persist_result=False)
def train(config: RunConfig, manifest: Path) -> dict[str, Any]:
    """Train the config's policy on a manifest; resume what was interrupted, skip what is done."""
    check_training(config, manifest)
    with in_use(config.root):
        return _train(config, manifest)


def _train(config: RunConfig, manifest: Path) -> dict[str, Any]:
    assert config.data.heldout is not None  # checked
    root, base = config.root, Path(config.base)
    tag_run(f"data:{config.data.name}", f"manifest:{read_manifest(manifest)['id']}")
    verifier = verifiers.load(config.policy, base).identity
    policy = models.fetch(config.policy.model, base)
    policy_hash = models.model_hash(policy)
    files = sources.find_files(config.data.heldout, base)
    rows, entry = run_stage(config, heldout, root, files, config.data, sources.content_hash(files), size=files[0].name)
    stages = [entry]
    answered, entry = run_stage(config, validation, root, rows, config.train)
    stages.append(entry)
    job = plan_job(config, manifest, answered.path / ANSWERED, policy_hash)

    def measure(folder: Path, sha256: str) -> ArtifactRef:
        size = f"{config.evaluation.prompts:,} problems x {config.evaluation.samples} answers"
        measured, entry = run_stage(config, evaluate, root, folder, sha256, rows, base, verifier, config.evaluation,
                                    config.policy, size=size, describe=_accuracy)
        stages.append(entry)
        return measured

    before = load_evaluation(measure(policy, policy_hash))
    trained, entry = run_stage(config, train_stage, job, job.identity,
                               size=f"{job.steps} steps of {job.batch_size} prompts x {config.train.rollouts} answers",
                               describe=lambda found: f"{found.steps} steps")
    after = load_evaluation(measure(trained.checkpoint, trained.sha256))
    outcome = {
        "steps": trained.steps,
        "steps_run_now": 0 if entry.cached else trained.steps_run_now,
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "greedy_before": before.greedy_accuracy,
        "greedy_after": after.greedy_accuracy,
        "gain": {"sampled": asdict(compare(before.sampled, after.sampled)),
                 "greedy": asdict(compare(before.greedy, after.greedy))},
        "problems": len(before.greedy),
        "samples": before.sampled.shape[1],
        "checkpoint": str(trained.checkpoint),
        "run": str(trained.run_dir),
        "report": str(trained.run_dir / "report.html"),
    }
    _show(trained, manifest, outcome)
    publish(config, trained.run_dir, stages)
    return outcome


def _accuracy(measured: ArtifactRef) -> str:
    found = load_evaluation(measured)
    return f"{found.accuracy:.1%} sampled, {found.greedy_accuracy:.1%} greedy"


def _show(trained: Trained, manifest: Path, outcome: dict[str, Any]) -> None:
    """The training's report page in the run's folder, and its short form as an artifact of the flow run."""
    from saerl_core.report import training

    metrics, manifest_id = read_metrics(trained.metrics), read_manifest(manifest)["id"]
    rows = pl.read_parquet(manifest / "train.parquet", columns=["extra_info"])["extra_info"].struct.unnest()
    difficulty = rows.group_by("batch").agg(pl.col("difficulty").mean()).sort("batch")["difficulty"].to_list()
    rewards = _rewards(trained.run_dir, rows)
    result = {
        "manifest": manifest_id,
        "steps": trained.steps,
        "accuracy_before": {"sampled": outcome["accuracy_before"], "greedy": outcome["greedy_before"]},
        "accuracy_after": {"sampled": outcome["accuracy_after"], "greedy": outcome["greedy_after"]},
        "gain": outcome["gain"],
    }
    write_file(trained.run_dir / "report.html", training.training_page(metrics, result, difficulty, rewards).encode())
    create_markdown_artifact(key="training", markdown=training.training_markdown(metrics, result, difficulty, rewards),
                             description=f"GRPO on manifest {manifest_id}")


def _rewards(run_dir: Path, rows: pl.DataFrame) -> pl.DataFrame | None:
    """How each prompt of each step fared, with its predicted difficulty; None where an older SAERL kept no rewards."""
    try:
        seen = observed_rewards(run_dir)
    except ArtifactError:
        return None  # the page does without
    return seen.join(rows.select("key", "difficulty").unique("key"), on="key", how="left", maintain_order="left")
