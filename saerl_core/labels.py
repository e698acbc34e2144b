"""A small labelled subset: which prompts to label, and what was measured of each, kept for ever.

Both are tied to a prompt's key, not to its place. So a prompt set that grows keeps nearly all of its labels, and a
labelling that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from saerl_core.artifact import write_file
from saerl_core.hashing import hash_file, hash_value

VERSION = 1


def draw(key: str, seed: int) -> int:
    """A prompt's lot: an integer that depends on its key and the seed alone. The lowest lots are chosen."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big")


def choose(keys: Sequence[str], clusters: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows to label: a stratified sample, every cluster in proportion to its size.

    Args:
        keys: n row keys.
        clusters: int [n], cluster of each prompt.
        count: Rows wanted; all rows where there are fewer.
        seed: Seed of the lots.

    Returns:
        int64 [min(count, n)], ascending. Cluster shares are exact up to rounding (largest remainder).
    """
    n = len(clusters)
    count = min(count, n)
    numbers, sizes = np.unique(clusters, return_counts=True)
    exact = sizes * count / n
    quota = np.floor(exact).astype(int)
    most_short = np.argsort(-(exact - quota), kind="stable")[: count - quota.sum()]
    quota[most_short] += 1
    lots = np.array([draw(key, seed) for key in keys], dtype=np.uint64)
    chosen = []
    for number, size in zip(numbers, quota, strict=True):
        members = np.flatnonzero(clusters == number)
        chosen.append(members[np.argsort(lots[members], kind="stable")[:size]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def store_name(policy_hash: str, sampling: dict[str, object]) -> str:
    """Folder name of the pass rates of one policy, sampled and verified in one way."""
    return f"{policy_hash[:12]}-{hash_value({'version': VERSION, **sampling})[:12]}"


def read_store(store: Path) -> dict[str, float]:
    """Pass rates measured so far, by row key. A damaged segment is removed: its prompts will be labelled again."""
    known: dict[str, float] = {}
    for segment in sorted(store.glob("*.parquet")):
        if hash_file(segment) != segment.stem:
            segment.unlink()
            continue
        frame = pl.read_parquet(segment)
        known |= dict(zip(frame["key"], frame["pass_rate"], strict=True))
    return known


def write_store(store: Path, keys: Sequence[str], pass_rates: Sequence[float]) -> None:
    """Add measured pass rates as one immutable segment."""
    buffer = io.BytesIO()
    pl.DataFrame({"key": list(keys), "pass_rate": list(pass_rates)}).write_parquet(buffer)
    data = buffer.getvalue()
    write_file(store / f"{hashlib.sha256(data).hexdigest()}.parquet", data)
