"""Stage `train`: a manifest and a policy → a policy that verl has trained on it, batch for batch."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from saerl_core import models
from saerl_core.config import RunConfig
from saerl_core.device import release_memory
from saerl_core.rl.check import check_job
from saerl_core.rl.job import VerlJob, build_job
from saerl_core.rl.launch import TrainProgress, run_job
from tasks.caching import stage
from tasks.limits import device_slot
from tasks.progress import Progress

VERSION = 1


class Trained(BaseModel):
    """A trained policy. Validation hashes the checkpoint, so one that was deleted or damaged is not taken as done."""

    model_config = ConfigDict(frozen=True)

    checkpoint: Path
    sha256: str
    run_dir: Path
    metrics: Path
    steps: int
    steps_run_now: int

    @model_validator(mode="after")
    def _intact(self) -> Self:
        if not self.checkpoint.is_dir() or models.model_hash(self.checkpoint) != self.sha256:
            raise ValueError(f"{self.checkpoint}: missing or changed since it was written")
        return self


def plan_job(config: RunConfig, manifest: Path, heldout_parquet: Path, policy_hash: str) -> VerlJob:
    """The verl job of a manifest, in a folder of the workspace that belongs to this very job."""
    draft = build_job(config, manifest, heldout_parquet, config.root / "runs" / "draft", policy_hash=policy_hash)
    run_dir = config.root / "runs" / f"{config.name}-{draft.identity[:12]}"
    return build_job(config, manifest, heldout_parquet, run_dir, policy_hash=policy_hash)


@stage("train", VERSION, of=("identity",))
def train(job: VerlJob, identity: str) -> Trained:
    """Check the job with verl's own code, run it to the end, resume it where it stopped."""
    check_job(job)
    release_memory()
    progress = Progress("train", "steps")
    with device_slot("cuda" if job.engine == "gpu" else "cpu"):
        result = run_job(job, lambda step: progress(step.step, step.steps, _note(step)))
    return Trained(checkpoint=result.checkpoint, sha256=models.model_hash(result.checkpoint), run_dir=job.run_dir,
                   metrics=result.metrics, steps=result.steps, steps_run_now=result.steps_run_now)


def _note(step: TrainProgress) -> str:
    parts = []
    if step.reward_mean is not None:
        parts.append(f"reward {step.reward_mean:.2f}")
    if step.heldout_accuracy is not None:
        parts.append(f"held-out {step.heldout_accuracy:.2f}")
    return ", ".join(parts)
