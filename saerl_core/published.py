"""What is kept beside manifests and training runs, not inside them: which runs gave them, what they are made of.

    published/<manifest id>.json     published/<training run's folder>.json

A manifest's bytes depend on its inputs alone, so who made it and when is written here. The record also names the
artifacts and feature segments of which it was made: `saerl gc` keeps these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from saerl_core import locks, sealed
from saerl_core.errors import ArtifactError

FOLDER = "published"
RUNS_KEPT = 20
"""The first run, and the last ones: a nightly run gives the same manifest for months."""


class Run(BaseModel):
    """A flow run that ended with this result."""

    model_config = ConfigDict(extra="forbid")

    flow_run_id: str
    name: str
    target: str
    """`name` of its config"""
    at: str
    """time (UTC, ISO 8601)"""


class Record(BaseModel):
    """One manifest's or training run's record."""

    model_config = ConfigDict(extra="forbid")

    made_of: list[str] = []
    """artifacts and feature segments, relative to the workspace"""
    runs: list[Run] = []


def read(workspace: Path, name: str) -> Record | None:
    """The record of a manifest or training run; None where there is none.

    Raises:
        ArtifactError: it is damaged.
    """
    path = workspace / FOLDER / f"{name}.json"
    try:
        return Record.model_validate(sealed.read(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's errors are among the latter
        raise ArtifactError(f"{path}: damaged; delete it, and run the same config again to write it anew") from error


def read_or_none(workspace: Path, name: str) -> Record | None:
    """The record, if there is one that can be read."""
    try:
        return read(workspace, name)
    except ArtifactError:
        return None


def note(workspace: Path, name: str, made_of: Iterable[Path], run: Run) -> None:
    """Add a run, and what its result is made of, to a record. A damaged record is begun anew."""
    parts = {path.relative_to(workspace).as_posix() for path in made_of if path.is_relative_to(workspace)}
    with _changing(workspace):
        record = read_or_none(workspace, name) or Record()
        runs = [*(known for known in record.runs if known.flow_run_id != run.flow_run_id), run]
        runs = runs if len(runs) <= RUNS_KEPT else [runs[0], *runs[1 - RUNS_KEPT :]]
        changed = Record(made_of=sorted(parts), runs=runs)
        sealed.write(workspace / FOLDER / f"{name}.json", changed.model_dump())


def replace(workspace: Path, merged: Mapping[Path, Path]) -> None:
    """Let the records name, in place of feature segments, those that now hold their rows."""
    renamed = {old.relative_to(workspace).as_posix(): new.relative_to(workspace).as_posix()
               for old, new in merged.items()}
    with _changing(workspace):
        for path in sorted((workspace / FOLDER).glob("[!.]*.json")):
            record = read_or_none(workspace, path.stem)
            if record is not None and not renamed.keys().isdisjoint(record.made_of):
                record.made_of = sorted({renamed.get(part, part) for part in record.made_of})
                sealed.write(path, record.model_dump())


def _changing(workspace: Path) -> AbstractContextManager[None]:
    """Records are read and written anew: one run at a time."""
    return locks.exclusive(workspace / FOLDER / ".lock")
