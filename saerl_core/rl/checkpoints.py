"""The checkpoints of a job: which are there, whether they are what verl wrote, and what a resume begins with.

verl names a checkpoint in a file once it is complete, and reads it back without a check. So the hashes of its files are
written down as soon as it is named, and one that was damaged since is removed at the next start: the job then goes on
from the one before it, or begins anew.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from saerl_core import sums
from saerl_core.artifact import write_file
from saerl_core.errors import ArtifactError
from saerl_core.rl.job import VerlJob
from saerl_core.rl.validations import is_validated

_TRACKER = "latest_checkpointed_iteration.txt"

logger = logging.getLogger(__name__)


def last_checkpoint(job: VerlJob) -> int | None:
    """Step of the last complete checkpoint."""
    return step_named(job.checkpoints)


def step_named(folder: Path) -> int | None:
    """The step that verl names in a job's folder of checkpoints, if that one is there."""
    try:
        step = int((folder / _TRACKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return step if (folder / f"global_step_{step}").is_dir() else None


def finished_checkpoint(job: VerlJob) -> Path | None:
    """The trained policy's folder, if the job has reached its last step, and validated it if it must."""
    if last_checkpoint(job) != job.steps or (job.must_validate and not is_validated(job.run_dir, job.steps)):
        return None
    folder = _folder(job, job.steps) / "actor" / "huggingface"
    complete = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return folder if complete else None


def adopt(job: VerlJob) -> None:
    """Begin with the checkpoint that `train.resume_from` names, unless there is a later one of this job's own."""
    if job.resume_from is None or last_checkpoint(job) is not None:
        return
    target = job.checkpoints / job.resume_from.path.name
    shutil.rmtree(job.checkpoints, ignore_errors=True)  # what an interrupted copy left
    shutil.copytree(job.resume_from.path, target)
    _name(job, job.resume_from.step)  # complete only with this


def note_hashes(job: VerlJob) -> None:
    """Write down the hashes of complete checkpoints, where that has not been done."""
    named = last_checkpoint(job)
    for step in _steps(job):
        folder = _folder(job, step)
        if named is None or step > named or (folder / sums.NAME).exists():
            continue
        if (folder / "actor").is_dir():  # verl takes this away, and leaves the rest, when it keeps newer ones
            with suppress(FileNotFoundError):  # it is doing so at this moment
                sums.write(folder)


def drop_damaged(job: VerlJob) -> None:
    """Remove checkpoints that are not what was written, and let verl find the newest that is."""
    note_hashes(job)
    named = last_checkpoint(job)
    for step in sorted(_steps(job), reverse=True):
        folder = _folder(job, step)
        if not (folder / sums.NAME).exists():
            continue  # never completed
        try:
            sums.check(folder)
        except ArtifactError as error:
            logger.warning("%s; training goes on from an earlier checkpoint", error)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        if step != named:
            _name(job, step)
        return
    (job.checkpoints / _TRACKER).unlink(missing_ok=True)


def drop_stale(job: VerlJob) -> None:
    """Remove all but the last complete checkpoint: verl forgets what an earlier process of its wrote."""
    keep = last_checkpoint(job)
    for step in _steps(job):
        if step != keep:
            shutil.rmtree(_folder(job, step), ignore_errors=True)


def _steps(job: VerlJob) -> list[int]:
    names = [folder.name.removeprefix("global_step_") for folder in job.checkpoints.glob("global_step_*")]
    return [int(name) for name in names if name.isdecimal()]


def _folder(job: VerlJob, step: int) -> Path:
    return job.checkpoints / f"global_step_{step}"


def _name(job: VerlJob, step: int) -> None:
    write_file(job.checkpoints / _TRACKER, str(step).encode())
