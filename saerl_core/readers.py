"""Files → records: JSON lines, Parquet, CSV and Arrow, one file or many, a row at a time."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from saerl_core.errors import DataError

Record = dict[str, Any]
_BATCH_ROWS = 1024
_ARROW_FILE = b"ARROW1"
_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, OverflowError, zlib.error, pa.ArrowException, csv.Error)
csv.field_size_limit(1 << 27)  # characters; a solution is longer than the default


class Row(NamedTuple):
    """A record and where it stands."""

    file: Path
    place: str
    """`line 3` or `row 3`, from 1"""
    record: Record


def read_rows(files: Sequence[Path], columns: Collection[str] = ()) -> Iterator[Row]:
    """The rows of all files, file after file.

    Args:
        files: Files of known kinds (`kind_of`), not necessarily all of one.
        columns: Columns that the caller wants: where all of them are there, a columnar file gives no others. `a.b`
            names the field b of a column a. Empty: all.

    Raises:
        DataError: a file is missing, of an unknown kind, or broken at a named place.
    """
    for file in files:
        reader = _READERS.get(kind_of(file))
        if reader is None:
            raise DataError(f"{file}: unknown kind of file; known: {', '.join(_READERS)}")
        try:
            yield from (Row(file, place, record) for place, record in reader(file, columns))
        except FileNotFoundError as error:
            raise DataError(f"{file}: no such file (data paths are relative to the config file)") from error
        except _UNREADABLE as error:
            hint = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
            raise DataError(f"{file}: cannot be read: {' '.join(str(error).split())}{hint}") from error


def kind_of(file: Path) -> str:
    """The ending that tells how a file is read; empty where none is known."""
    return next((ending for ending in _READERS if file.name.lower().endswith(ending)), "")


def _read_jsonl(file: Path, _: Collection[str]) -> Iterator[tuple[str, Record]]:
    with io.TextIOWrapper(_decompressed(file), encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise DataError(f"{file}, line {number}: broken JSON: {reason}{_array_hint(line)}") from error
            if not isinstance(record, dict):
                raise DataError(f"{file}, line {number}: expected an object, found {type(record).__name__}"
                                f"{_array_hint(line)}")
            if "\\u" in line and (broken := [name for name, value in record.items() if not _is_text(name, value)]):
                raise DataError(f"{file}, line {number}: {broken[0]!r} holds half a character (a lone surrogate)")
            yield f"line {number}", record


def _array_hint(line: str) -> str:
    return "; one object a line is read, not a JSON array (`jq -c '.[]'` makes lines of it)" if line[:1] == "[" else ""


def _is_text(*values: Any) -> bool:
    """False where an escape such as `\\ud800` is half a character, which no file can hold."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _decompressed(file: Path) -> Any:
    match file.suffix.lower():
        case ".gz":
            return gzip.open(file, "rb")
        case ".zst":
            return pa.input_stream(str(file), compression="zstd")
        case _:
            return file.open("rb")


def _read_csv(file: Path, _: Collection[str]) -> Iterator[tuple[str, Record]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        header = reader.fieldnames or []
        if len(header) == 1 and (mark := next((mark for mark in (";", "\t", "|") if mark in header[0]), None)):
            raise DataError(f"{file}, line 1: fields are separated by {mark!r}, not by commas: save it with commas, or "
                            "as JSON lines")
        for record in reader:
            if None in record or None in record.values():
                raise DataError(f"{file}, line {reader.line_num}: another number of fields than the header has")
            yield f"line {reader.line_num}", record


def _read_parquet(file: Path, columns: Collection[str]) -> Iterator[tuple[str, Record]]:
    with pq.ParquetFile(file) as table:
        wanted = _wanted(table.schema_arrow.names, columns)
        yield from _numbered(table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted))


def _read_arrow(file: Path, columns: Collection[str]) -> Iterator[tuple[str, Record]]:
    with pa.memory_map(str(file)) as mapped:
        whole = mapped.read(len(_ARROW_FILE)) == _ARROW_FILE  # the format with a footer; else a stream
        mapped.seek(0)
        with (pa.ipc.open_file if whole else pa.ipc.open_stream)(mapped) as table:
            wanted = _wanted(table.schema.names, columns)
            batches = map(table.get_batch, range(table.num_record_batches)) if whole else table
            yield from _numbered(_sound(batch.select(wanted) if wanted else batch) for batch in batches)


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if its offsets stay within its buffers: Arrow trusts them, so a damaged file would end the process."""
    batch.validate(full=True)
    return batch


def _wanted(names: list[str], columns: Collection[str]) -> list[str] | None:
    """The columns to read; all of them where one is missing, so that the error can name what is there."""
    wanted = {column if column in names else column.partition(".")[0] for column in columns}
    return [name for name in names if name in wanted] if columns and wanted <= set(names) else None


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, Record]]:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            yield f"row {number}", record


_READERS: dict[str, Callable[[Path, Collection[str]], Iterator[tuple[str, Record]]]] = {
    ".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl, ".jsonl.zst": _read_jsonl, ".ndjson": _read_jsonl,
    ".parquet": _read_parquet, ".csv": _read_csv, ".arrow": _read_arrow,
}
