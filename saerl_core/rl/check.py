"""A job is checked before anything starts: by verl's own code, in verl's own interpreter, in seconds.

A configuration error that surfaces inside Ray costs minutes and a page of traceback; here it is one line.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from saerl_core import models
from saerl_core.config import RunConfig
from saerl_core.errors import ArtifactError, TrainError
from saerl_core.rl.job import VerlJob
from saerl_core.rl.settings import VERL_SIDE, Engine, interpreter, job_environment, job_overrides, resolve_engine

_TIMEOUT_SECONDS = 600.0


class JobCheck(BaseModel):
    """What the dry run saw."""

    model_config = ConfigDict(frozen=True)

    engine: Engine
    verl: str
    """Version of verl."""
    steps: int
    rows: int
    heldout_rows: int
    longest_prompt: int
    """Tokens, the chat template's included."""


class ConfigCheck(BaseModel):
    """A configuration that verl accepts."""

    model_config = ConfigDict(frozen=True)

    engine: Engine
    verl: str
    model_found: bool
    """False: the policy is a hub id that is not on this machine, so model and tokenizer were not looked at."""


def check_job(job: VerlJob) -> JobCheck:
    """Dry-run a job and compare the batches that verl would take with the manifest's.

    Raises:
        TrainError: verl would refuse the job, or take other batches. One line.
    """
    report = _dry_run("job", job.python, job.overrides, job.child_environment())
    expected = manifest_batches(job)
    if report["batches"] != expected:
        step = next(
            (k for k, pair in enumerate(zip(report["batches"], expected, strict=False)) if pair[0] != pair[1]),
            min(len(report["batches"]), len(expected)),
        )
        raise TrainError(f"verl would not train in the manifest's order: {len(report['batches'])} batches for "
                         f"{len(expected)}, the first difference at step {step + 1}; look at train.overrides")
    return JobCheck(
        engine=job.engine,
        verl=report["verl"],
        steps=len(expected),
        rows=report["rows"],
        heldout_rows=report["heldout_rows"],
        longest_prompt=report["longest_prompt"],
    )


def check_config_only(config: RunConfig) -> ConfigCheck:
    """Let verl validate the settings of a run that has no manifest yet, and perhaps no model on this machine.

    Raises:
        ConfigError: an override that is refused.
        ModelError: the policy is a folder, and no model is in it.
        TrainError: verl refuses the configuration.
    """
    engine, policy, overrides = draft_overrides(config)
    path = os.pathsep.join(filter(None, (str(VERL_SIDE), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **job_environment(config, engine, Path("run")), "PYTHONPATH": path}
    report = _dry_run("config", interpreter(config), overrides, environment)
    return ConfigCheck(engine=engine, verl=report["verl"], model_found=policy is not None)


def draft_overrides(config: RunConfig) -> tuple[Engine, Path | None, tuple[str, ...]]:
    """Engine, policy (None: not on this machine) and hydra overrides of a run that has no manifest yet.

    Asks nobody: what is wrong with the settings by themselves shows at once.

    Raises:
        ConfigError: an override that is refused, or a step that does not divide over GPUs or micro-batches.
        ModelError: the policy is a folder, and no model is in it.
    """
    engine = resolve_engine(config)
    policy = models.find(config.policy.model, Path(config.base))
    return engine, policy, job_overrides(
        config,
        engine=engine,
        model=str(policy or config.policy.model),
        train_parquet=Path("train.parquet"),
        heldout_parquet=Path("heldout.parquet") if config.data.heldout else None,
        run_dir=Path("run"),
        batch_size=config.schedule.batch_size,
        steps=config.schedule.steps or 1,
    )


def manifest_batches(job: VerlJob) -> list[list[str]]:
    """Prompt ids of every step, as the manifest wants them.

    Raises:
        ArtifactError: the manifest's file does not hold `steps` x `batch_size` rows.
    """
    ids = pl.read_parquet(job.train_parquet, columns=["extra_info"])["extra_info"].struct.field("id").cast(pl.String)
    if len(ids) != job.steps * job.batch_size:
        raise ArtifactError(f"{job.train_parquet}: {len(ids)} rows, the manifest says {job.steps} batches of "
                            f"{job.batch_size}")
    rows = ids.to_list()
    return [rows[start : start + job.batch_size] for start in range(0, len(rows), job.batch_size)]


def _dry_run(mode: str, python: str, overrides: tuple[str, ...], environment: dict[str, str]) -> dict[str, Any]:
    command = [python, str(VERL_SIDE / "saerl_check.py"), mode, *overrides]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_TIMEOUT_SECONDS, check=False,
        )
    except OSError as error:
        raise TrainError(f"train.python: {python} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise TrainError(f"verl's dry run took longer than {_TIMEOUT_SECONDS:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    try:
        report = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise TrainError(f"verl cannot be checked with {python}: {last[:300]}; is verl installed there? "
                         "(pip install 'saerl[verl]', or name its interpreter in train.python)") from error
    if not report["ok"]:
        raise TrainError(f"verl refuses the job: {report['error'][:400]}")
    return report
