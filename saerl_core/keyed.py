"""Small facts about prompts, kept for ever by row key: a folder of immutable parquet segments named by their hash.

So a prompt set that grows costs only its new prompts, and work that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import polars as pl

from saerl_core.artifact import write_file


def read(store: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """All facts of a store, each key once.

    Args:
        store: The folder; need not exist.
        schema: Its columns, `key` among them.

    A damaged segment is removed: what it held will be found out again.
    """
    frames = [pl.DataFrame(schema=schema)]
    for segment in sorted(store.glob("[!.]*.parquet")):  # not what another run is writing
        with suppress(FileNotFoundError):  # another run has found it damaged, too
            data = segment.read_bytes()
            if hashlib.sha256(data).hexdigest() == segment.stem:
                frames.append(pl.read_parquet(data))
            else:
                segment.unlink()
    return pl.concat(frames).unique("key", keep="first", maintain_order=True)


def complete(store: Path, schema: dict[str, type[pl.DataType]], wanted: pl.DataFrame,
             find: Callable[[pl.DataFrame], pl.DataFrame], *, chunk_rows: int,
             progress: Callable[[int, int], None]) -> pl.DataFrame:
    """The facts of the wanted rows: what is known of them, and the rest found in chunks, each kept once it is done.

    Args:
        store: The folder; need not exist.
        schema: Its columns, `key` among them.
        wanted: Rows with a `key`.
        find: Some of these rows → their facts, in the schema.
        chunk_rows: What an interruption can lose. Chunks are fixed, so that `find` forms the same batches after one.
        progress: Called with rows done and rows in all.

    Returns:
        A row of the schema for each wanted one, in the same order.
    """
    known = read(store, schema)
    for start in range(0, wanted.height, chunk_rows):
        chunk = wanted[start : start + chunk_rows].join(known, on="key", how="anti", maintain_order="left")
        if chunk.height:
            found = find(chunk)
            add(store, found)
            known = known.vstack(found)
        progress(min(start + chunk_rows, wanted.height), wanted.height)
    return wanted.select("key").join(known, on="key", how="left", maintain_order="left")


def add(store: Path, facts: pl.DataFrame) -> None:
    """Add facts as one segment, complete or absent."""
    buffer = io.BytesIO()
    facts.write_parquet(buffer)
    data = buffer.getvalue()
    write_file(store / f"{hashlib.sha256(data).hexdigest()}.parquet", data)
