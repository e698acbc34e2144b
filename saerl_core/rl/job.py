"""A config and a manifest → a verl job: a command line, an environment and a folder, all decided before it starts.

The job trains on the manifest's batches, one a step, in order. verl does that if the rows lie in order in the file and
nothing filters, shuffles, refills or splits them; `settings` says so key by key. `train.overrides` have the last word
on everything else.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from saerl_core import models, sealed, sums
from saerl_core.config import RunConfig
from saerl_core.errors import ArtifactError, ConfigError, ModelError
from saerl_core.hashing import hash_file, hash_value
from saerl_core.manifest import verify_manifest
from saerl_core.rl.overrides import key_of
from saerl_core.rl.settings import VERL_SIDE, Engine, interpreter, job_environment, job_overrides, resolve_engine

JOB_FILE = "job.json"
"""In the run folder: which job it belongs to."""

_OPERATIONAL = (
    "trainer.save_freq", "trainer.test_freq", "trainer.logger", "trainer.v1.sampler.sampler_kwargs",
    "data.val_files", "data.val_max_samples", "ray_kwargs", "hydra",
)
"""Keys that may differ between a job and the one that resumes it."""


class Checkpoint(BaseModel):
    """A checkpoint of another job, from which this one is told to go on."""

    model_config = ConfigDict(frozen=True)

    path: Path
    step: int
    manifest_id: str
    identity: str
    """of the job that wrote it"""


class VerlJob(BaseModel):
    """Everything that is needed to start, resume or recognise a job."""

    model_config = ConfigDict(frozen=True)

    engine: Engine
    python: str
    """Interpreter that has verl."""
    overrides: tuple[str, ...]
    """Hydra overrides of `verl.trainer.main_ppo`."""
    environment: dict[str, str]
    """Variables set on top of the environment that the job inherits."""
    unset: tuple[str, ...]
    """Variables that the job must not inherit."""
    run_dir: Path
    manifest_dir: Path
    manifest_id: str
    batch_size: int
    steps: int
    """Batches of the manifest, and so training steps."""
    identity: str
    """Hash of what decides the result: manifest, policy, settings. A run folder belongs to one identity."""
    retries: int
    must_validate: bool = False
    """Whether it is done only when its last step has been validated."""
    resume_from: Checkpoint | None = None
    """Where it begins, if not at the policy."""

    @property
    def train_parquet(self) -> Path:
        return self.manifest_dir / "train.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def consumed(self) -> Path:
        return self.run_dir / "consumed"

    @property
    def metrics(self) -> Path:
        return self.run_dir / "metrics"

    @property
    def log(self) -> Path:
        return self.run_dir / "verl.log"

    def child_environment(self) -> dict[str, str]:
        """The inherited environment with this job's changes. Never written to disk: it may hold secrets."""
        inherited = {name: value for name, value in os.environ.items() if name not in self.unset}
        path = os.pathsep.join(filter(None, (str(VERL_SIDE), inherited.get("PYTHONPATH"))))
        return {**inherited, **self.environment, "PYTHONPATH": path}


def build_job(
    config: RunConfig,
    manifest_dir: Path,
    heldout_parquet: Path | None,
    run_dir: Path,
    *,
    policy_hash: str | None = None,
) -> VerlJob:
    """The verl job that trains `config.policy` on a manifest.

    Args:
        config: Sections `policy` and `train` decide the job; the manifest decides data, batch size and steps.
        manifest_dir: A manifest; every byte of it is checked.
        heldout_parquet: What validations during training answer (`validations.validation_rows`); without it there are
            none.
        run_dir: The job's own folder: checkpoints, metrics, logs. Need not exist yet.
        policy_hash: Content hash of the policy, if the caller knows it; else its files are read.

    Raises:
        ConfigError: an override that would change the order of prompts, settings that do not fit the manifest, or a
            verifier that cannot be had.
        ArtifactError: the manifest is damaged.
        ModelError: there is no such policy.
    """
    manifest_dir, run_dir = manifest_dir.resolve(), run_dir.resolve()
    manifest = verify_manifest(manifest_dir)
    batch_size, steps = int(manifest["batch_size"]), int(manifest["batches"])
    engine = resolve_engine(config)
    policy = models.fetch(config.policy.model, Path(config.base))
    overrides = job_overrides(
        config,
        engine=engine,
        model=str(policy),
        train_parquet=manifest_dir / "train.parquet",
        heldout_parquet=heldout_parquet,
        run_dir=run_dir,
        batch_size=batch_size,
        steps=steps,
    )
    resumed = _named_checkpoint(config, policy, batch_size, steps)
    validated = heldout_parquet if config.train.test_first else None
    decisive = [
        override.replace(str(run_dir), "RUN").replace(str(policy), "POLICY").replace(str(manifest_dir), "MANIFEST")
        .replace(str(VERL_SIDE), "SAERL")
        for override in overrides
        if not any(key_of(override) == key or key_of(override).startswith(key + ".") for key in _OPERATIONAL)
    ]
    return VerlJob(
        engine=engine,
        python=interpreter(config),
        overrides=overrides,
        environment=job_environment(config, engine, run_dir),
        unset=("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS") if engine == "cpu"
        else ("RAY_ADDRESS",) if config.train.nodes == 1 else (),
        run_dir=run_dir,
        manifest_dir=manifest_dir,
        manifest_id=str(manifest["id"]),
        batch_size=batch_size,
        steps=steps,
        identity=hash_value([manifest["id"], policy_hash or models.model_hash(policy), decisive,
                             *([resumed.identity, resumed.step] if resumed else []),
                             *([hash_file(validated), config.train.test_every] if validated else [])]),
        retries=config.train.retries,
        must_validate=validated is not None,
        resume_from=resumed,
    )


def _named_checkpoint(config: RunConfig, policy: Path, batch_size: int, steps: int) -> Checkpoint | None:
    """What `train.resume_from` names, if this job can go on from there.

    Raises:
        ConfigError: it is no checkpoint, damaged, of another batch size or model, or at or past the last step.
    """
    if config.train.resume_from is None:
        return None
    path = config.resolve(config.train.resume_from)
    try:
        step = int(path.name.removeprefix("global_step_"))
        written = sealed.read(path.parent.parent / JOB_FILE)
        found = Checkpoint(path=path, step=step, manifest_id=written["manifest"], identity=written["identity"])
        then, now = models.read_spec(path / "actor" / "huggingface"), models.read_spec(policy)
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        raise ConfigError(f"train.resume_from: {path} is no checkpoint of a training run of SAERL's "
                          "(runs/NAME/checkpoints/global_step_N)") from error
    if (path / sums.NAME).exists():
        try:
            sums.check(path)
        except ArtifactError as error:
            raise ConfigError(f"train.resume_from: {error}; name an earlier checkpoint") from error
    if written["batch_size"] != batch_size:
        raise ConfigError(f"train.resume_from: {path} was trained on batches of {written['batch_size']}, this manifest "
                          f"has batches of {batch_size}: its steps are not the same")
    if step >= steps:
        raise ConfigError(f"train.resume_from: {path} is at step {step}, this manifest has {steps} batches: nothing is "
                          "left to train on")
    if (then.layers, then.d_model) != (now.layers, now.d_model):
        raise ConfigError(f"train.resume_from: {path} is a model of {then.layers} x {then.d_model} (layers x width), "
                          f"policy.model one of {now.layers} x {now.d_model}")
    return found
