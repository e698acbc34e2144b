"""Start a job, watch it, resume it, and leave nothing behind.

A run folder belongs to one job for ever (`job.json`): verl resumes from whatever checkpoint it finds and does not look
at the data, so SAERL does. The job runs in a process tree of its own (see `process`) and is watched through its files:
verl's metrics, line by line, and the record of consumed prompts, which is compared with the manifest at every step.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from saerl_core import sealed
from saerl_core.errors import ArtifactError, TrainError
from saerl_core.rl import checkpoints, process
from saerl_core.rl.check import manifest_batches
from saerl_core.rl.checkpoints import finished_checkpoint, last_checkpoint
from saerl_core.rl.consumed import consumed_at
from saerl_core.rl.job import JOB_FILE, VerlJob
from saerl_core.rl.logs import telling_line
from saerl_core.rl.metrics import HELDOUT, metric_files, parse_line
from saerl_core.rl.overrides import key_of, spell
from saerl_core.rl.settings import AGENT_LOOPS, VERL_SIDE

_POLL_SECONDS = 0.25
_AGENT_LOOPS = "- {name: saerl_single_turn, _target_: saerl_agent_loop.single_turn}\n"
_PY_EXECUTABLE = "ray_kwargs.ray_init.runtime_env.py_executable"


@dataclass(frozen=True)
class TrainProgress:
    """One training step, just finished."""

    step: int
    steps: int
    reward_mean: float | None
    heldout_accuracy: float | None
    """Only at steps with a validation."""


class TrainResult(BaseModel):
    """A finished job."""

    model_config = ConfigDict(frozen=True)

    steps: int
    steps_run_now: int
    """Steps that this call ran; fewer than `steps` after a resume."""
    started: bool
    """False: the job had been finished before, and nothing was started."""
    resumed_from: int | None
    """Step of the checkpoint that the last attempt began with."""
    attempts: int
    """Processes started by this call."""
    checkpoint: Path
    """Folder of the trained policy, with tokenizer, as transformers writes it."""
    metrics: Path
    """Folder for `metrics.read_metrics`."""


def run_job(job: VerlJob, on_progress: Callable[[TrainProgress], None] | None = None) -> TrainResult:
    """Run a job to its last step, resuming what is there already.

    Args:
        job: From `build_job`.
        on_progress: Called after every step, in this thread. What it raises ends the job.

    Raises:
        ArtifactError: the run folder belongs to another manifest or to other settings.
        TrainError: the job died more often than `job.retries` allows, ended early, or did not follow the manifest.
    """
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with _exclusively(job.run_dir):
        claim(job)
        process.reap(job.run_dir)
        checkpoints.drop_damaged(job)
        checkpoints.adopt(job)
        done = finished_checkpoint(job)
        if done is not None:
            return _result(job, done, started=False, resumed_from=job.steps, attempts=0, steps_run_now=0)
        expected = manifest_batches(job)
        steps_seen: set[int] = set()
        attempt = 0
        while True:
            attempt += 1
            resumed_from = last_checkpoint(job)
            log_start = job.log.stat().st_size if job.log.exists() else 0
            before = len(steps_seen)
            exit_code = _run_once(job, expected, steps_seen, on_progress)
            checkpoints.note_hashes(job)
            done = finished_checkpoint(job)
            if done is not None:
                return _result(job, done, started=True, resumed_from=resumed_from, attempts=attempt,
                               steps_run_now=len(steps_seen))
            moved = len(steps_seen) > before or last_checkpoint(job) != resumed_from
            if not moved or attempt > job.retries:  # what fails before its first step would fail again
                raise TrainError(_obituary(job, exit_code, steps_seen, attempt, log_start))


def claim(job: VerlJob) -> None:
    """Bind the run folder to this job.

    Raises:
        ArtifactError: it belongs to another one.
    """
    path = job.run_dir / JOB_FILE
    own = {
        "format": 1,
        "manifest": job.manifest_id,
        "identity": job.identity,
        "engine": job.engine,
        "steps": job.steps,
        "batch_size": job.batch_size,
        "resumed_from": job.resume_from.model_dump(mode="json") if job.resume_from else None,
    }
    if path.exists():
        try:
            other = sealed.read(path)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: {error}; delete {job.run_dir} to train afresh") from error
        if other.get("manifest") != job.manifest_id:
            raise ArtifactError(f"{job.run_dir} belongs to manifest {other.get('manifest')}, not to {job.manifest_id}: "
                                "training would resume on other data; use another folder, delete this one, or name its "
                                "checkpoint in train.resume_from")
        if other.get("identity") != job.identity:
            raise ArtifactError(f"{job.run_dir} belongs to a job with another policy or other settings: it cannot be "
                                "resumed with these; use another folder, or delete this one")
        return
    if job.checkpoints.exists():
        raise ArtifactError(f"{job.checkpoints}: checkpoints of an unknown job; use another folder, or delete this one")
    sealed.write(path, own)


def _run_once(
    job: VerlJob,
    expected: list[list[str]],
    steps_seen: set[int],
    on_progress: Callable[[TrainProgress], None] | None,
) -> int:
    """One attempt, from start to the end of its last process. Returns the exit code."""
    checkpoints.drop_stale(job)
    (job.run_dir / AGENT_LOOPS).write_text(_AGENT_LOOPS, encoding="utf-8")
    job.metrics.mkdir(exist_ok=True)
    metrics = job.metrics / f"attempt-{len(metric_files(job.metrics)) + 1:04d}.jsonl"
    metrics.touch()
    record = process.new_record()
    environment = job.child_environment() | {
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "TMPDIR": record.ray_dir,  # verl leaves lock files
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray makes one and leaves it in the home folder
    }
    command = _command(job, record.ray_dir)
    child: subprocess.Popen[bytes] | None = None
    try:
        try:
            child, record = process.start(record, command, environment, job.run_dir, job.log)
        except FileNotFoundError as error:
            raise TrainError(f"train.python: no interpreter at {job.python}") from error
        lines = _follow(metrics, child)
        for row in filter(None, map(parse_line, lines)):
            step = row["step"]
            if row["reward_mean"] is not None:  # else a validation before the first step of this attempt
                _check_consumed(job, step, expected)
                steps_seen.add(step)
            checkpoints.note_hashes(job)
            if on_progress is not None:
                on_progress(_progress(row, job.steps))
            if step == job.steps and _may_end_early(job) and finished_checkpoint(job) is not None:
                return 0  # nothing is left but seconds of polite farewells between processes
        return child.wait()
    finally:
        process.end(job.run_dir, record)
        if child is not None:
            child.wait()


def _command(job: VerlJob, ray_dir: str) -> list[str]:
    """The command line of one attempt, whose Ray lives in `ray_dir`."""
    keys = {key_of(override) for override in job.overrides}
    late: dict[str, Any] = {}
    if "ray_kwargs.ray_init.address" in keys:  # a Ray of its own, not a cluster that is there
        late["+ray_kwargs.ray_init._temp_dir"] = ray_dir
    if job.engine == "gpu" or sys.platform != "linux" or _PY_EXECUTABLE in keys:
        return [job.python, "-m", "verl.trainer.main_ppo", *job.overrides, *spell(late)]
    fork, server = str(VERL_SIDE / "saerl_fork.py"), str(Path(ray_dir, "fork"))
    late[_PY_EXECUTABLE] = shlex.join([job.python, "-I", "-S", fork, "worker", server])
    return [job.python, fork, "driver", server, *job.overrides, *spell(late)]


def _follow(path: Path, child: subprocess.Popen[bytes]) -> Iterator[str]:
    """Complete lines of a growing file, until the child has ended and all is read."""
    pending = ""
    with path.open(encoding="utf-8") as file:
        while True:
            ended = child.poll() is not None  # asked first: what is written before the end is read after it
            pending += file.read()
            *complete, pending = pending.split("\n")
            yield from complete
            if ended:
                return
            time.sleep(_POLL_SECONDS)


def _check_consumed(job: VerlJob, step: int, expected: list[list[str]]) -> None:
    consumed = consumed_at(job.run_dir, step)
    if consumed != expected[step - 1]:
        raise TrainError(f"step {step} did not train on the manifest's batch {step} (took {_few(consumed)}, expected "
                         f"{_few(expected[step - 1])}); the job was stopped; records: {job.consumed}")


def _few(ids: list[str] | None) -> str:
    return "nothing" if ids is None else f"{len(ids)} prompts beginning {', '.join(ids[:3])}"


def _may_end_early(job: VerlJob) -> bool:
    """Not where a logger of the user's choice may still have to send its data."""
    return job.engine == "cpu" and sum(key_of(override) == "trainer.logger" for override in job.overrides) == 1


def _progress(row: dict[str, Any], steps: int) -> TrainProgress:
    return TrainProgress(
        step=row["step"],
        steps=steps,
        reward_mean=row["reward_mean"],
        heldout_accuracy=row[HELDOUT],
    )


def _result(job: VerlJob, checkpoint: Path, **facts: Any) -> TrainResult:
    return TrainResult(steps=job.steps, checkpoint=checkpoint, metrics=job.metrics, **facts)


def _obituary(job: VerlJob, exit_code: int, steps_seen: set[int], attempt: int, log_start: int) -> str:
    where = f"after step {max(steps_seen)} of {job.steps}" if steps_seen else "before its first step"
    how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
    tries = f", attempt {attempt}" if attempt > 1 else ""
    return f"the verl job {how} {where}{tries}: {telling_line(job.log, log_start)}; log: {job.log}"


@contextlib.contextmanager
def _exclusively(run_dir: Path) -> Iterator[None]:
    """Only one process may run a folder's job. The lock goes when its holder does, however it ends."""
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainError(f"{run_dir}: another process is running this job") from error
        yield
