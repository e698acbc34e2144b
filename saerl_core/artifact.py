"""Stored outputs: complete or absent, named by their content, checked when they are read.

An artifact is a folder `<kind>-<id>/` with files and one JSON header that lists each file's SHA-256 and size.
The header is written last, into a folder under a temporary name; then the folder is renamed. Its id is the hash
of the header, so one changed byte anywhere, in a file or in the header, shows.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from saerl_core import locks
from saerl_core.errors import ArtifactError
from saerl_core.hashing import canonical_json, hash_file, hash_value

HEADER = "artifact.json"
ID_LENGTH = 16
_FOREIGN_SECONDS = 2 * 86_400.0
_TICK_SECONDS = 0.1

logger = logging.getLogger(__name__)


class ArtifactRef(BaseModel):
    """What a task returns in place of data: where an artifact lies and what it must hash to.

    Validation reads the artifact. So a cached reference whose folder was deleted or damaged does not load, and
    the task runs again.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    """The artifact's folder, or a single content-addressed file."""
    sha256: str
    """Hash of the folder's header, or of the file."""
    size: int
    """Bytes, all files together."""

    @model_validator(mode="after")
    def _intact(self) -> Self:
        try:
            verify(self)
        except ArtifactError as error:
            if self.path.exists():
                logger.warning("%s; it will be made again", error)
            raise ValueError(str(error)) from error
        return self


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A temporary folder in `root`, removed on failure. What a killed process leaves is swept at the next use."""
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    temporary = Path(tempfile.mkdtemp(prefix=temporary_name(), dir=root))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what writers that no longer live have left in `folder` under temporary names."""
    for leftover in temporary_leftovers(folder):
        shutil.rmtree(leftover, ignore_errors=True)
        leftover.unlink(missing_ok=True)


def temporary_leftovers(folder: Path) -> Iterator[Path]:
    """What writers that no longer live have left in `folder` under temporary names."""
    return filter(_is_abandoned, folder.glob(".tmp-*-*"))


def _is_abandoned(leftover: Path) -> bool:
    """Whether a writer lives can only be told of this machine, or container. What others left counts after two days."""
    where, pid, *_ = leftover.name.split("-")[1:]
    if where == _where() and pid.isdigit():
        return not _alive(int(pid))
    with suppress(FileNotFoundError):
        return time.time() - leftover.stat().st_mtime > _FOREIGN_SECONDS
    return False


def temporary_name(of: str = "") -> str:
    """A name of its own for what this process writes: hidden, and swept once the process is gone."""
    return f".tmp-{_where()}-{os.getpid()}-{secrets.token_hex(4)}-{of}"


@cache
def _where() -> str:
    """This machine and, in a container, its space of process numbers, in a word."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return hash_value([socket.gethostname(), namespace])[:8]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see all of it or none: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def seal(staged: Path, kind: str, header: dict[str, Any], header_name: str = HEADER) -> ArtifactRef:
    """Give a staged folder its header and its place beside it: `<kind>-<id>`, or `<id>` where `kind` is empty.

    Args:
        staged: A folder from `staging`, holding the artifact's files and nothing else.
        kind: First part of the folder's name.
        header: What a reader should know beside the files. Must not depend on time or place.
        header_name: Name of the header file.
    """
    files = {
        file.relative_to(staged).as_posix(): {"sha256": hash_file(file), "size": file.stat().st_size}
        for file in sorted(staged.rglob("*"))
        if file.is_file()
    }
    text = json.dumps({**header, "files": files}, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(staged / header_name, text.encode())
    sha256 = hash_file(staged / header_name)
    target = staged.parent / "-".join(filter(None, (kind, sha256[:ID_LENGTH])))
    staged.chmod(0o755)
    size = sum(entry["size"] for entry in files.values()) + len(text.encode())
    if not settle(staged, target):
        with suppress(ValueError):
            return ArtifactRef(path=target, sha256=sha256, size=size)  # same content, same name
        with locks.exclusive(staged.parent / ".lock"):
            with suppress(ValueError):
                return ArtifactRef(path=target, sha256=sha256, size=size)  # another run has mended it
            with staging(staged.parent) as aside:
                target.rename(aside / target.name)
                settle(staged, target)
    return ArtifactRef(path=target, sha256=sha256, size=size)


def settle(staged: Path, target: Path) -> bool:
    """Rename a staged folder; False where one is there already, made before or by another run just now."""
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def read_header(folder: Path, header_name: str = HEADER) -> dict[str, Any]:
    """The parsed header of an artifact folder.

    Raises:
        ArtifactError: there is none, it is not JSON, or it names files outside the folder.
    """
    path = folder / header_name
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: no {header_name} there: incomplete, or not a SAERL artifact") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: unreadable header: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("files"), dict):
        raise ArtifactError(f"{path}: not a SAERL header: it lists no files")
    for name, entry in header["files"].items():
        if not isinstance(entry, dict) or not {"sha256", "size"} <= entry.keys():
            raise ArtifactError(f"{path}: not a SAERL header: no hash and size of {name!r}")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{path}: names {name!r}, a file outside its own folder")
    return header


@contextmanager
def _gone_is_missing() -> Iterator[None]:
    """A file that vanishes under the check, as where another run mends the same artifact, is a missing one."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename}: missing") from error


@_gone_is_missing()
def verify(ref: ArtifactRef) -> None:
    """Check an artifact against its reference, every byte.

    Raises:
        ArtifactError: names the first file that is missing, extra, or changed.
    """
    if ref.path.is_file():
        if file_hash(ref.path) != ref.sha256:
            raise ArtifactError(f"{ref.path}: changed since it was written (SHA-256 differs)")
        return
    header_name = next((name for name in (HEADER, "manifest.json") if (ref.path / name).is_file()), HEADER)
    verify_folder(ref.path, ref.sha256, header_name)


@_gone_is_missing()
def verify_folder(folder: Path, sha256: str, header_name: str = HEADER) -> dict[str, Any]:
    """Check every file of an artifact folder; returns its header.

    Args:
        folder: The artifact.
        sha256: The header's expected hash, or its first characters.
        header_name: Name of the header file.

    Raises:
        ArtifactError: names the first file that is missing, extra, or changed.
    """
    header = read_header(folder, header_name)
    if not file_hash(folder / header_name).startswith(sha256):
        raise ArtifactError(f"{folder / header_name}: does not hash to {sha256[:ID_LENGTH]}: changed since it was "
                            "written, or the folder was renamed")
    for name, entry in header["files"].items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{file}: missing")
        if file.stat().st_size != entry["size"]:
            raise ArtifactError(f"{file}: {file.stat().st_size} bytes, {entry['size']} were written")
        if file_hash(file) != entry["sha256"]:
            raise ArtifactError(f"{file}: changed since it was written (SHA-256 differs)")
    known = {*header["files"], header_name}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).as_posix() not in known:
            raise ArtifactError(f"{file}: does not belong to this artifact")
    return header


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read once a process unless its size, time or inode change."""
    status = path.stat()
    if time.time() - status.st_mtime < _TICK_SECONDS:  # two writes within a tick of the file system's clock look alike
        return hash_file(path)
    return _hash_once(path, status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _hash_once(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    return hash_file(path)


def write_json(path: Path, value: Any) -> None:
    """Canonical JSON, written atomically."""
    write_file(path, (canonical_json(value) + "\n").encode())
