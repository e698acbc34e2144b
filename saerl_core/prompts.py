"""Prompt files → `PromptTable`: validated rows with stable identities, and what must not be trained on marked.

A prompt table is a polars frame with the columns of `SCHEMA`. A row's `key` is the hash of its normalised messages
and answer: it stays the same wherever the row moves in the file. `drop_reason` is null for a usable row.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import polars as pl

from saerl_core.config import ColumnsConfig, DataConfig, SourceConfig
from saerl_core.errors import DataError
from saerl_core.hashing import hash_value

VERSION = 1
KEY_LENGTH = 32

Message = dict[str, str]
DropReason = Literal["duplicate", "conflicting_answers", "contaminated", "too_long", "unverifiable_answer"]

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SCHEMA = {
    "key": pl.String,
    "id": pl.String,
    "messages": MESSAGES,
    "text": pl.String,
    "answer": pl.String,
    "data_source": pl.String,
    "subject": pl.String,
    "level": pl.Float64,
    "pass_rate": pl.Float64,
    "drop_reason": pl.String,
}


def read_prompts(path: Path, config: DataConfig, heldout: pl.DataFrame | None = None) -> pl.DataFrame:
    """Read and validate a prompt file; mark exact duplicates, conflicting answers and contamination.

    Args:
        path: The resolved file.
        config: Columns, instruction and system message.
        heldout: Table of the evaluation set, read with the same instruction.

    Returns:
        A frame of `SCHEMA`, one row for each row of the file, in the file's order.

    Raises:
        DataError: file, row and field of the first bad row, and how many there are.
    """
    return mark(read_table(path, config, config), heldout)


def read_heldout(path: Path, config: DataConfig) -> pl.DataFrame:
    """Read the evaluation set with the training set's name, instruction and system message.

    Raises:
        DataError: see `read_prompts`.
    """
    assert config.heldout is not None
    return read_table(path, config.heldout, config)


def read_table(path: Path, source: SourceConfig, framing: DataConfig, limit: int | None = None) -> pl.DataFrame:
    """Read one file, or its first `limit` rows, into a frame of `SCHEMA`; nothing is marked yet.

    Raises:
        DataError: see `read_prompts`.
    """
    columns = source.effective_columns()
    pattern = re.compile(source.answer_pattern, re.MULTILINE) if source.answer_pattern else None
    rows, problems, seen = [], [], {}
    for where, record in itertools.islice(read_rows(path), limit):
        try:
            row = _prompt(record, columns, pattern, framing)
            if row["id"] is not None and (first := seen.setdefault(row["id"], where)) != where:
                raise ValueError(f"{columns.id} = {row['id']!r} stands in {first} already; ids must be unique")
            rows.append(row)
        except ValueError as error:
            problems.append(f"{path}, {where}: {error}")
            if isinstance(error, MissingColumnError):
                break  # every further row would say the same
    if problems:
        more = f" (and {len(problems) - 1} more bad rows)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    if not rows:
        raise DataError(f"{path}: no rows")
    table = pl.DataFrame(rows, schema=SCHEMA)
    return table.with_columns(id=pl.coalesce("id", pl.col("key").str.slice(0, 16)))


def mark(table: pl.DataFrame, heldout: pl.DataFrame | None) -> pl.DataFrame:
    """Set `drop_reason` where a prompt must not be trained on, whatever its scores.

    Of exact duplicates the first stays. Of one text with two answers none stays: nobody can tell which is right.
    """
    text_key = table["text"].map_elements(normalise, return_dtype=pl.String)
    answers = table.with_columns(text_key=text_key).group_by("text_key").agg(pl.col("key").n_unique().alias("n"))
    conflicting = set(answers.filter(pl.col("n") > 1)["text_key"])
    evaluated = {normalise(text) for text in heldout["text"]} if heldout is not None else set()
    reasons: list[DropReason | None] = []
    seen: set[str] = set()
    for key, text in zip(table["key"], text_key, strict=True):
        reason: DropReason | None = None
        if text in evaluated:
            reason = "contaminated"
        elif text in conflicting:
            reason = "conflicting_answers"
        elif key in seen:
            reason = "duplicate"
        seen.add(key)
        reasons.append(reason)
    return table.with_columns(drop_reason=pl.Series(reasons, dtype=pl.String))


def mark_too_long(table: pl.DataFrame, count_tokens: Callable[[list[Message]], int], limit: int) -> pl.DataFrame:
    """Mark usable rows whose rendered prompt exceeds the policy's limit: verl would cut them on the left."""
    too_long = pl.Series(
        [reason is None and count_tokens(messages) > limit
         for reason, messages in zip(table["drop_reason"], table["messages"].to_list(), strict=True)],
        dtype=pl.Boolean,
    )
    reason = pl.when(too_long).then(pl.lit("too_long")).otherwise(pl.col("drop_reason"))
    return table.with_columns(drop_reason=reason)


def usable(table: pl.DataFrame) -> pl.DataFrame:
    """The rows that nothing speaks against so far."""
    return table.filter(pl.col("drop_reason").is_null())


def normalise(text: str) -> str:
    """The spelling in which two texts are compared: NFC, whitespace collapsed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def row_key(messages: list[Message], answer: str) -> str:
    """Identity of a row: hash of its normalised messages and answer."""
    parts = [[message["role"], normalise(message["content"])] for message in messages]
    return hash_value([parts, normalise(answer)])[:KEY_LENGTH]


class MissingColumnError(ValueError):
    """A column that the config names is not in the file."""


def _prompt(record: dict[str, Any], columns: ColumnsConfig, pattern: re.Pattern[str] | None,
            framing: DataConfig) -> dict[str, Any]:
    messages = _messages(_field(record, columns.prompt, "prompt"), columns.prompt)
    text = "\n".join(message["content"] for message in messages if message["role"] == "user")
    if framing.instruction:
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        messages[last]["content"] += "\n" + framing.instruction
    if framing.system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": framing.system})
    answer = _answer(_field(record, columns.answer, "answer"), columns.answer, pattern)
    subject = _field(record, columns.subject, "subject") if columns.subject else None
    row_id = _field(record, columns.id, "id") if columns.id else None
    if row_id is not None and not str(row_id).strip():
        raise ValueError(f"{columns.id} is empty")
    return {
        "key": row_key(messages, answer),
        "id": None if row_id is None else str(row_id),
        "messages": messages,
        "text": text,
        "answer": answer,
        "data_source": framing.name,
        "subject": None if subject is None else str(subject),
        "level": _number(record, columns.level, "level"),
        "pass_rate": _number(record, columns.pass_rate, "pass_rate", low=0.0, high=1.0),
        "drop_reason": None,
    }


def _field(record: dict[str, Any], column: str, role: str) -> Any:
    value: Any = record
    for part in [column] if column in record else column.split("."):
        if not isinstance(value, dict) or part not in value:
            found = ", ".join(sorted(record)) or "none"
            raise MissingColumnError(f"no column {column!r} for the {role}; the columns are {found} "
                                     f"(set data.columns.{role} or data.preset)")
        value = value[part]
    return value


def _messages(value: Any, column: str) -> list[Message]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column} is {_brief(value)}: expected text or a list of chat messages")
    messages = []
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"{column} holds {_brief(message)}: a chat message needs `role` and `content` as text")
        messages.append({"role": message["role"], "content": message["content"]})
    if not any(message["role"] == "user" for message in messages):
        raise ValueError(f"{column} has no message of the role 'user'")
    if not any(message["content"].strip() for message in messages if message["role"] == "user"):
        raise ValueError(f"{column} is empty")
    return messages


def _answer(value: Any, column: str, pattern: re.Pattern[str] | None) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column} is {_brief(value)}: expected the answer as text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{column} is {value}: not an answer")
    answer = str(value)
    if pattern is not None:
        found = pattern.search(answer)
        if found is None:
            raise ValueError(f"{column} does not match data.answer_pattern: {_brief(answer)}")
        answer = found.group(1)
    if not answer.strip():
        raise ValueError(f"{column} is empty")
    return answer.strip()


def _number(record: dict[str, Any], column: str | None, role: str, low: float = -math.inf,
            high: float = math.inf) -> float | None:
    if column is None or (value := _field(record, column, role)) is None:
        return None
    try:
        number = float(re.sub(r"^Level\s+", "", value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ValueError(f"{column} is {_brief(value)}: expected a number") from None
    if not low <= number <= high:  # also true of NaN
        raise ValueError(f"{column} = {number}: expected a number from {low} to {high}")
    return number


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each row of a JSONL, gzipped JSONL, Parquet or CSV file.

    Raises:
        DataError: the file is missing, of an unknown kind, empty, or broken at a named place.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file (data paths are relative to the config file)")
    readers = {".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet,
               ".csv": _read_csv}
    reader = next((read for suffix, read in readers.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise DataError(f"{path}: unknown kind of file; known: {', '.join(readers)}")
    try:
        yield from reader(path)
    except (OSError, EOFError, UnicodeDecodeError, pl.exceptions.PolarsError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with (gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz"
          else path.open(encoding="utf-8-sig")) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise DataError(f"{path}, line {number}: broken JSON: {reason}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: expected an object, found {_brief(record)}")
            yield f"line {number}", record


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return _numbered(pl.read_parquet(path).iter_rows(named=True))


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for record in reader:
            if None in record or None in record.values():
                raise DataError(f"{path}, line {reader.line_num}: another number of fields than the header has")
            yield f"line {reader.line_num}", record


def _numbered(records: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in enumerate(records, start=1):
        yield f"row {number}", record
