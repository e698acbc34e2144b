"""Feature rows on disk: files of rows, and the feature store.

The store is a folder of immutable segments, each named by its own hash. A row's key is the hash of the messages
that were read, so a row keeps its features wherever it moves, and only rows never seen before are run. The folder
belongs to one model, one SAE and one way of extracting.

Files are safetensors, mapped into memory when they are read: what is not touched costs nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from saerl_core.artifact import ArtifactRef, file_hash, sweep, temporary_name
from saerl_core.errors import ArtifactError
from saerl_core.features import ARRAYS, VERSION, FeatureRows, concatenate, pick, take
from saerl_core.hashing import hash_file, hash_value

_KEY_BYTES = 16
_SEGMENTS = "[!.]*.safetensors"
_TYPES = {"I64": np.int64, "I32": np.int32, "F32": np.float32, "U8": np.uint8}
_SMALL_ROWS = 65_536
"""Segments of fewer rows are small: `compact` merges them into one of at least so many."""

logger = logging.getLogger(__name__)


def feature_key(messages: list[dict[str, str]]) -> str:
    """Identity of what is read: hash of the messages, to the letter (32 hex digits)."""
    return hash_value(messages)[: 2 * _KEY_BYTES]


def write_rows(path: Path, rows: FeatureRows, extra: dict[str, np.ndarray] | None = None) -> None:
    """Write rows, and perhaps further arrays, as one safetensors file.

    Raises:
        OSError: the disk is full.
    """
    tensors = {name: np.ascontiguousarray(getattr(rows, name)) for name in ARRAYS}
    try:
        safetensors.numpy.save_file({**tensors, **(extra or {})}, path, metadata={"d_sae": str(rows.d_sae)})
    except safetensors.SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # it keeps the system's error in words only
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_rows(path: Path) -> FeatureRows:
    """Map rows that `write_rows` wrote; read-only.

    Raises:
        ArtifactError: the file is not such a file.
    """
    try:
        arrays, metadata = _map(path)
        return FeatureRows(**{name: arrays[name] for name in ARRAYS}, d_sae=int(metadata["d_sae"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not a file of feature rows: {error}") from error


def _map(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of a safetensors file without reading them (the library's own numpy reader copies), and its metadata."""
    raw = np.memmap(path, mode="r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    metadata = header.pop("__metadata__")
    return {
        name: np.asarray(raw[slice(*(start + offset for offset in entry["data_offsets"]))])
        .view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }, metadata


def write_segment(store: Path, keys: Sequence[str], rows: FeatureRows) -> ArtifactRef:
    """Add rows to the store as one immutable segment.

    Args:
        store: The store's folder.
        keys: Feature keys, one a row.
        rows: Their rows.
    """
    return _write_segment(store, np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8), rows)


def _write_segment(store: Path, keys: np.ndarray, rows: FeatureRows) -> ArtifactRef:
    store.mkdir(parents=True, exist_ok=True)
    sweep(store)
    temporary = store / temporary_name("segment")
    try:
        write_rows(temporary, rows, {"keys": keys.reshape(len(rows), _KEY_BYTES)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        sha256, size = hash_file(temporary), temporary.stat().st_size
        path = store / f"{sha256}.safetensors"
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return ArtifactRef(path=path, sha256=sha256, size=size)


class _Index:
    """Where a store's rows lie, as far as this process knows: it grows with the store, and is read but once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.segments: set[Path] = set()
        self.where: dict[bytes, tuple[Path, int]] = {}

    def follow(self, store: Path) -> None:
        """Take in what was added to the store since, remove what is damaged, forget what is gone.

        What another run compacts meanwhile vanishes while it is looked at, so this looks until nothing has.
        """
        looked_at = None
        while looked_at != (there := set(store.glob(_SEGMENTS))):
            with ThreadPoolExecutor() as pool:  # hashing lets the others run
                looked_at = {segment for segment, ok in zip(there, pool.map(_intact, there), strict=True) if ok}
            if self.segments - looked_at:
                self.segments, self.where = set(), {}
            for segment in sorted(looked_at - self.segments):
                with suppress(FileNotFoundError):
                    for row, key in enumerate(_keys(segment)):
                        self.where.setdefault(key, (segment, row))
                    self.segments.add(segment)


_indexes: dict[Path, _Index] = {}


def _intact(segment: Path) -> bool:
    try:
        if file_hash(segment) == segment.stem:
            return True
    except FileNotFoundError:  # compacted by another run just now
        return False
    logger.warning("%s: damaged (its name is not its hash); removed, its prompts will be read again", segment)
    segment.unlink(missing_ok=True)
    return False


def _keys(segment: Path) -> list[bytes]:
    packed = _map(segment)[0]["keys"].tobytes()
    return [packed[start : start + _KEY_BYTES] for start in range(0, len(packed), _KEY_BYTES)]


def find_rows(store: Path, keys: Iterable[str]) -> dict[str, tuple[Path, int]]:
    """Where the store holds which of the keys: key → (segment, row). Damaged segments are removed and so forgotten.

    A segment's keys are read once a process, so the cost is that of the keys asked for and of what is new.
    """
    index = _indexes.setdefault(store, _Index())
    with index.lock:
        index.follow(store)
        found = ((key, index.where.get(bytes.fromhex(key))) for key in keys)
        return {key: place for key, place in found if place is not None}


def gather(store: Path, keys: Sequence[str]) -> FeatureRows:
    """The rows of these keys, in this order.

    Raises:
        ArtifactError: the store lacks some of them.
    """
    where = find_rows(store, keys)
    if missing := [key for key in keys if key not in where]:
        raise ArtifactError(f"{store}: lacks {len(missing)} of {len(keys)} rows; run the extraction again")
    segments = sorted({segment for segment, _ in where.values()})
    number = {segment: nth for nth, segment in enumerate(segments)}
    places = np.array([(number[segment], row) for segment, row in map(where.__getitem__, keys)]).reshape(-1, 2)
    return pick([read_rows(segment) for segment in segments], places[:, 0], places[:, 1])


def compact(store: Path) -> dict[Path, Path]:
    """Merge the store's small segments into one. Hold the store's lock (`locks.exclusive`).

    The merged segment is in its place before the small ones go, so a process that is killed leaves rows twice, which
    the next time mends, and never loses one.

    Returns:
        Small segment → the segment that now holds its rows; the small ones are still there: `discard` them when nothing
        refers to them any more. Empty where there is nothing to merge.
    """
    small = [segment for segment in sorted(store.glob(_SEGMENTS)) if _intact(segment)
             and len(read_rows(segment)) < _SMALL_ROWS]
    if len(small) < 2:
        return {}
    keys = [key for segment in small for key in _keys(segment)]
    first = np.unique(np.frombuffer(b"".join(keys), dtype=f"V{_KEY_BYTES}"), return_index=True)[1]
    rows = concatenate([read_rows(segment) for segment in small])
    once = np.sort(first)
    if len(once) < len(keys):
        rows = take(rows, once)
    merged = _write_segment(store, np.frombuffer(b"".join(keys[row] for row in once), dtype=np.uint8), rows)
    return {segment: merged.path for segment in small if segment != merged.path}


def discard(segments: Iterable[Path]) -> None:
    """Remove segments that `compact` has merged."""
    for segment in segments:
        segment.unlink(missing_ok=True)


def store_name(model: str, encoder: str, extraction: dict[str, object]) -> str:
    """Folder name of the store for a model hash, an encoder hash and an extraction's parameters."""
    digest = hash_value(json.loads(json.dumps({"version": VERSION, **extraction})))
    return f"{model[:12]}-{encoder[:12]}-{digest[:12]}"
