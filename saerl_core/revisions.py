"""What a run reads from outside (files, folders, hub data sets), looked at cheaply and identified by content."""

from __future__ import annotations

from pathlib import Path

from saerl_core import locations
from saerl_core.config import HUB_PREFIX
from saerl_core.hashing import hash_file, hash_files, hash_value

Look = list[list[int | str]]
"""Names, sizes, times and inodes of a source's files. Equal looks: nothing was written. Unlike ones: maybe."""


def is_hub(name: str) -> bool:
    """True for a data set on the hub: `hub:owner/name`, its revision after an `@`."""
    return name.startswith(HUB_PREFIX)


def look(name: str, base: Path) -> Look | None:
    """A cheap look at a source; None where there is nothing at the moment. A hub data set shows its revision.

    Raises:
        OSError: the hub cannot be asked, or the folder cannot be read.
    """
    if is_hub(name):
        return [[_revision(name)]]
    root = locations.resolve(name, base)
    try:
        stats = [(file.relative_to(root).as_posix(), file.stat()) for file in _files(root)]
    except FileNotFoundError:
        return None  # between a deletion and what replaces it
    return [[path, stat.st_size, stat.st_mtime_ns, stat.st_ino] for path, stat in stats] or None


def content_hash(name: str, base: Path) -> str:
    """SHA-256 (hex) of a source's content: a file's bytes; a folder's files with their names; a hub revision.

    Raises:
        OSError: it cannot be read.
    """
    if is_hub(name):
        return hash_value(_revision(name))
    root = locations.resolve(name, base)
    return hash_file(root) if root.is_file() else hash_files(root, _files(root))


def _files(root: Path) -> list[Path]:
    """The file, or all visible files of the folder."""
    if root.is_file():
        return [root]
    return sorted(file for file in root.rglob("*") if file.is_file()
                  and not any(part.startswith(".") for part in file.relative_to(root).parts))


def _revision(name: str) -> str:
    """The commit that a hub data set stands at. Asks the hub."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    try:
        return str(HfApi().dataset_info(repository, revision=revision or None).sha)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise OSError(f"{name}: the hub does not answer: {' '.join(str(error).split())[:200]}") from error
