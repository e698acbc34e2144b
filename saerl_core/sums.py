"""Folders whose files another program reads (verl, sae-lens) and does not check: a list of hashes lies beside them.

The list is in the format of `sha256sum`, so `sha256sum --check SHA256SUMS` tells the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from saerl_core.artifact import sweep, write_file
from saerl_core.errors import ArtifactError
from saerl_core.hashing import hash_file

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write(folder: Path) -> None:
    """List every file of a folder with its hash."""
    sweep(folder)  # a list that a killed process had begun
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    lines = [f"{hash_file(folder / name)}  {name}\n" for name in names if name != NAME]
    write_file(folder / NAME, "".join(lines).encode())


def check(folder: Path, names: Iterable[str] | None = None) -> None:
    """Check files against the list.

    Args:
        folder: Where the list lies.
        names: The files that matter. Default: all that are listed; what was added since is not looked at.

    Raises:
        ArtifactError: names the first file that is missing, changed, or not listed; or the list, if it is unreadable.
    """
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / NAME}: unreadable: {error}") from error
    listed: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise ArtifactError(f"{folder / NAME}: damaged: {line[:80]!r}")
        listed[match[2]] = match[1]
    for name in listed if names is None else names:
        if name not in listed:
            raise ArtifactError(f"{folder / name}: not listed in {NAME}")
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: missing")
        if hash_file(folder / name) != listed[name]:
            raise ArtifactError(f"{folder / name}: changed since it was written (SHA-256 differs)")
