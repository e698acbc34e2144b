"""What `data.path` means → the files to read: one file, a folder of files, or a data set on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from saerl_core import locations
from saerl_core.artifact import file_hash
from saerl_core.config import HUB_PREFIX, SourceConfig
from saerl_core.errors import DataError
from saerl_core.hashing import hash_value
from saerl_core.readers import kind_of

_NOT_DATA = re.compile(r"[._].*|.*\.md|licen[cs]e.*|dataset_(info|dict)s?\.json|state\.json", re.IGNORECASE)
"""What lies beside data in a folder: hidden files, descriptions, the headers of a saved `datasets` folder."""


def find_files(source: SourceConfig, base: Path) -> tuple[Path, ...]:
    """The files of a source, in the order in which they are read (by name); a hub data set is downloaded first.

    Args:
        source: Where the prompts are.
        base: Folder that relative paths refer to.

    Raises:
        DataError: nothing is there, or something in the folder is not a data file, or the hub does not give it.
    """
    if source.path.startswith(HUB_PREFIX):
        return _hub_files(source)
    path = locations.resolve(source.path, base)
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise DataError(f"{path}: no such file; paths in a config are relative to the config file")
    entries = sorted(entry for entry in path.iterdir() if not _NOT_DATA.fullmatch(entry.name))
    files = tuple(entry for entry in entries if entry.is_file())
    for file in files:
        if not kind_of(file):
            raise DataError(f"{file}: unknown kind of file in a data folder; move it elsewhere, or rename it "
                            f"`_{file.name}` to have it skipped")
    if not files:
        folders = ", ".join(entry.name for entry in entries) or "nothing"
        raise DataError(f"{path}: no data files in this folder; name one of its subfolders (there is: {folders})")
    return files


def content_hash(files: Sequence[Path]) -> str:
    """Hash of what the files hold, in their order; their names and places do not count."""
    hashes = [file_hash(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hash_value(hashes)


def _hub_files(source: SourceConfig) -> tuple[Path, ...]:
    """The Arrow files into which `datasets` turns one split of a hub data set, in its cache."""
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    name, split = source.path.removeprefix(HUB_PREFIX), source.split or "train"
    try:
        loaded = datasets.load_dataset(name, source.subset, split=split, revision=source.revision, keep_in_memory=False)
    except (OSError, ValueError, DatasetsError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source.path} (split {split!r}): the hub does not give this data set, and it is not in the "
                        f"cache of this machine: {reason if len(reason) <= 200 else reason[:197] + '...'}") from error
    assert isinstance(loaded, datasets.Dataset)
    return tuple(Path(entry["filename"]) for entry in loaded.cache_files)
