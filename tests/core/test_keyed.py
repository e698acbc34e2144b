"""Facts kept by row key: found once, in fixed chunks, whatever ended the work on the way."""

from pathlib import Path

import polars as pl
import pytest

from saerl_core import keyed

SCHEMA: dict[str, type[pl.DataType]] = {"key": pl.String, "length": pl.Int64}
ROWS = pl.DataFrame({"key": [f"{n:02d}" for n in range(10)], "text": ["x" * n for n in range(10)]})


def lengths(chunk: pl.DataFrame) -> pl.DataFrame:
    return chunk.select("key", length=pl.col("text").str.len_chars().cast(pl.Int64))


def silent(done: int, of: int) -> None:
    assert done <= of


def test_only_unknown_rows_are_looked_for_and_every_row_comes_back_in_order(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def find(chunk: pl.DataFrame) -> pl.DataFrame:
        asked.append(chunk["key"].to_list())
        return lengths(chunk)

    first = keyed.complete(tmp_path, SCHEMA, ROWS[2:6], find, chunk_rows=4, progress=silent)
    assert first["length"].to_list() == [2, 3, 4, 5]
    every = keyed.complete(tmp_path, SCHEMA, ROWS.reverse(), find, chunk_rows=4, progress=silent)
    assert every.equals(lengths(ROWS.reverse()))
    assert asked == [["02", "03", "04", "05"], ["09", "08", "07", "06"], ["01", "00"]]


def test_an_interruption_loses_one_chunk_and_the_chunks_stay_the_same(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def dies_at_the_third(chunk: pl.DataFrame) -> pl.DataFrame:
        asked.append(chunk["key"].to_list())
        if len(asked) == 3:
            raise KeyboardInterrupt
        return lengths(chunk)

    with pytest.raises(KeyboardInterrupt):
        keyed.complete(tmp_path, SCHEMA, ROWS, dies_at_the_third, chunk_rows=3, progress=silent)
    found = keyed.complete(tmp_path, SCHEMA, ROWS, dies_at_the_third, chunk_rows=3, progress=silent)
    assert found.equals(lengths(ROWS))
    assert asked[2] == asked[3] == ["06", "07", "08"]
    assert asked[4:] == [["09"]]


def test_a_damaged_segment_is_found_out_again(tmp_path: Path) -> None:
    keyed.complete(tmp_path, SCHEMA, ROWS, lengths, chunk_rows=5, progress=silent)
    damaged, _ = sorted(tmp_path.glob("*.parquet"))
    content = bytearray(damaged.read_bytes())
    content[20] ^= 1
    damaged.write_bytes(content)
    asked: list[int] = []

    def find(chunk: pl.DataFrame) -> pl.DataFrame:
        asked.append(chunk.height)
        return lengths(chunk)

    assert keyed.complete(tmp_path, SCHEMA, ROWS, find, chunk_rows=5, progress=silent).equals(lengths(ROWS))
    assert asked == [5]


def test_no_rows_is_no_work(tmp_path: Path) -> None:
    assert keyed.complete(tmp_path, SCHEMA, ROWS[:0], lengths, chunk_rows=5, progress=silent).is_empty()
    assert not any(tmp_path.iterdir())
