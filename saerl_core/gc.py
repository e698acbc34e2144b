"""What in a workspace nothing refers to any more, and its removal.

Manifests and training runs are never removed: they are what everything else is kept for. Who wants to be rid of one
deletes its folder; what only that one referred to is then found here. All of that is a cache: a run that wants it makes
it again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saerl_core import disk, locks, published
from saerl_core.artifact import temporary_leftovers
from saerl_core.errors import ArtifactError

Kind = Literal["artifact", "features", "result", "draft", "record", "temporary"]


@dataclass(frozen=True)
class Garbage:
    """One thing that nothing refers to."""

    path: Path
    kind: Kind
    bytes: int


@dataclass(frozen=True)
class Findings:
    """What `saerl gc` shows."""

    garbage: tuple[Garbage, ...]
    kept_bytes: int
    """all that stays in the workspace"""
    notes: tuple[str, ...]


def find(workspace: Path) -> Findings:
    """Look for what no manifest and no training run refers to. Changes nothing.

    Raises:
        ArtifactError: there is no such workspace, or a record in it is damaged.
    """
    if not (workspace / "manifests").is_dir() and not (workspace / "artifacts").is_dir():
        raise ArtifactError(f"{workspace}: no workspace of SAERL's there")
    roots = [folder.name for kind in ("manifests", "runs") for folder in sorted((workspace / kind).glob("[!.]*"))
             if folder.name != "draft"]
    live: set[Path] = set()
    notes = []
    for name in roots:
        record = published.read(workspace, name)
        if record is None:
            notes.append(f"{name} has no record of what it is made of: artifacts and features are all kept; run its "
                         "config again (all of it is cached) to write one, or delete it")
        else:
            live |= {workspace / part for part in record.made_of}
    garbage = list(_leftovers(workspace))
    if not notes:
        garbage += _unreferenced(workspace, live)
    garbage += _results(workspace, {item.path for item in garbage})
    garbage += [_garbage(path, "record") for path in sorted((workspace / published.FOLDER).glob("[!.]*.json"))
                if path.stem not in roots]
    return Findings(tuple(garbage), disk.used_bytes(workspace) - sum(item.bytes for item in garbage), tuple(notes))


def remove(workspace: Path) -> Findings:
    """Remove what `find` finds, while no run uses the workspace.

    Raises:
        ArtifactError: a run uses it; else see `find`.
    """
    try:
        with locks.exclusive(workspace / locks.IN_USE, wait=False):
            found = find(workspace)
            for item in found.garbage:
                if item.path.is_dir() and not item.path.is_symlink():
                    shutil.rmtree(item.path)
                else:
                    item.path.unlink(missing_ok=True)
            return found
    except locks.BusyError as error:
        raise ArtifactError(f"{workspace}: a run is using this workspace; nothing was removed: try again when it has "
                            "ended") from error


def _leftovers(workspace: Path) -> Iterator[Garbage]:
    """What needs no bookkeeping to be known as rubbish."""
    draft = workspace / "runs" / "draft"
    if draft.exists():
        yield _garbage(draft, "draft")
    for folder in sorted(Path(place) for place, _, _ in os.walk(workspace)):
        if not folder.name.startswith(".tmp-"):
            yield from (_garbage(path, "temporary") for path in temporary_leftovers(folder))


def _unreferenced(workspace: Path, live: set[Path]) -> Iterator[Garbage]:
    for folder in sorted((workspace / "artifacts").glob("[!.]*")):
        if folder not in live:
            yield _garbage(folder, "artifact")
    for segment in sorted((workspace / "features").glob("*/*.safetensors")):
        if segment not in live and not segment.name.startswith("."):
            yield _garbage(segment, "features")


def _results(workspace: Path, doomed: set[Path]) -> Iterator[Garbage]:
    """Cached results that name something that is gone, or goes now. Prefect makes them again without a word."""
    for file in sorted((workspace / "results").glob("[!.]*")):
        try:
            named = list(_places(json.loads(json.loads(file.read_text(encoding="utf-8"))["result"])))
        except (OSError, ValueError, KeyError, TypeError):
            yield _garbage(file, "result")  # Prefect could not read it either
            continue
        if any(path in doomed or not path.exists() for path in named):
            yield _garbage(file, "result")


def _places(value: Any) -> Iterator[Path]:
    """All paths that a stored result names."""
    if isinstance(value, dict):
        yield from (Path(value[key]) for key in ("path", "checkpoint") if isinstance(value.get(key), str))
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _places(item)


def _garbage(path: Path, kind: Kind) -> Garbage:
    return Garbage(path, kind, disk.used_bytes(path))
