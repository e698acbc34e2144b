"""Small facts about prompts, kept for ever by row key: a folder of immutable parquet segments named by their hash.

So a prompt set that grows costs only its new prompts, and work that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import polars as pl

from saerl_core.artifact import write_file
from saerl_core.hashing import hash_file


def read(store: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """All facts of a store, each key once.

    Args:
        store: The folder; need not exist.
        schema: Its columns, `key` among them.

    A damaged segment is removed: what it held will be found out again.
    """
    frames = [pl.DataFrame(schema=schema)]
    for segment in sorted(store.glob("*.parquet")):
        if hash_file(segment) != segment.stem:
            segment.unlink()
            continue
        frames.append(pl.read_parquet(segment))
    return pl.concat(frames).unique("key", keep="first", maintain_order=True)


def add(store: Path, facts: pl.DataFrame) -> None:
    """Add facts as one segment, complete or absent."""
    buffer = io.BytesIO()
    facts.write_parquet(buffer)
    data = buffer.getvalue()
    write_file(store / f"{hashlib.sha256(data).hexdigest()}.parquet", data)
