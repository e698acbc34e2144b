"""Records → `PromptTable`: validated rows with stable identities.

A prompt table is a polars frame with the columns of `SCHEMA`. A row's `key` is the hash of its normalised messages
and answer: it stays the same wherever the row moves. `drop_reason` is null for a usable row; `hygiene` sets it.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from saerl_core.config import PRESETS, ColumnsConfig, DataConfig, SourceConfig
from saerl_core.errors import DataError
from saerl_core.hashing import hash_value
from saerl_core.readers import Record, read_rows

VERSION = 3
KEY_LENGTH = 32
_FRAME_ROWS = 8192
"""Rows held as Python objects before they become part of a frame."""

Message = dict[str, str]

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
    "quality": pl.Float64,
    "solution": pl.String,
    "drop_reason": pl.String,
}
_OPTIONAL = ("subject", "level", "pass_rate", "quality", "solution")
"""Columns that a row may lack."""


def read_table(files: Sequence[Path], source: SourceConfig, framing: DataConfig,
               limit: int | None = None) -> pl.DataFrame:
    """Read and validate prompts.

    Args:
        files: The source's files (`sources.find_files`).
        source: Columns, and where the answer is in its column.
        framing: Name, instruction and system message: those of the training set, for evaluation sets too.
        limit: Read only so many rows.

    Returns:
        A frame of `SCHEMA`, one row for each row of the files, in their order; nothing is marked yet.

    Raises:
        DataError: file, row and field of the first bad row, and how many there are.
    """
    columns = source.columns
    answer_pattern = re.compile(source.answer_pattern, re.MULTILINE) if source.answer_pattern else None
    wanted = {name for name in columns.model_dump().values() if name}
    usual = PRESETS[source.preset].columns if source.preset else ColumnsConfig()  # a copy of the data may lack these
    missing = {name for name in _OPTIONAL if getattr(columns, name) not in (None, getattr(usual, name))}
    frames, rows, problems = [], [], []
    ids: dict[str, str] = {}
    record: Record = {}
    for file, place, record in itertools.islice(read_rows(files, wanted), limit):
        try:
            row = _prompt(record, columns, answer_pattern, framing)
            where = f"{file.name}, {place}" if len(files) > 1 else place
            if row["id"] is not None and (first := ids.setdefault(row["id"], where)) != where:
                raise ValueError(f"{columns.id} = {row['id']!r} stands in {first} already; ids must be unique")
            rows.append(row)
        except ValueError as error:
            problem = str(error)
            if isinstance(error, MissingColumnError) and (frames or rows):  # which have it
                problem = f"no {error.column!r} in this row: fill it in, or leave the row out"
            problems.append(f"{file}, {place}: {problem}")
            if isinstance(error, MissingColumnError) and not (frames or rows):
                break  # every further row would say the same
        missing -= {name for name in missing if _lookup(record, getattr(columns, name)) is not _ABSENT}
        if len(rows) == _FRAME_ROWS:
            frames.append(_frame(rows))
            rows = []
    table = pl.concat([*frames, _frame(rows)])
    if problems:
        more = f" (and {len(problems) - 1} more bad rows)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    place = str(files[0] if len(files) == 1 else files[0].parent)
    if not table.height:
        raise DataError(f"{place}: no rows")
    if missing and table.height != limit:
        role = min(missing)
        raise DataError(f"{place}: no row has the column {getattr(columns, role)!r} for the {role}; the columns are "
                        f"{', '.join(sorted(record))} (set data.columns.{role})")
    return table.with_columns(id=pl.coalesce("id", pl.col("key").str.slice(0, 16)))


def mark_too_long(table: pl.DataFrame, count_tokens: Callable[[list[list[Message]]], list[int]],
                  limit: int) -> pl.DataFrame:
    """Mark usable rows whose rendered prompt exceeds the policy's limit: verl would cut them on the left."""
    rows = table["drop_reason"].is_null().arg_true()
    counts = pl.Series(count_tokens(table["messages"].gather(rows).to_list()), dtype=pl.Int64)
    too_long = rows.filter(counts > limit)
    return table.with_columns(drop_reason=table["drop_reason"].scatter(too_long, "too_long"))


def drop_counts(table: pl.DataFrame) -> dict[str, int]:
    """How many rows were dropped, by reason."""
    return dict(table["drop_reason"].drop_nulls().value_counts().sort("drop_reason").rows())


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


_ABSENT = object()
_NUMBER_WORDS = {"true": 1.0, "false": 0.0, "level ?": None}
"""Truth values as CSV files have them, and a level that MATH does not know."""


class MissingColumnError(ValueError):
    """A column that the config names is not in the file, or not in a row of it."""

    def __init__(self, column: str, words: str) -> None:
        super().__init__(words)
        self.column = column


def _prompt(record: Record, columns: ColumnsConfig, pattern: re.Pattern[str] | None,
            framing: DataConfig) -> dict[str, Any]:
    messages = _messages(_field(record, columns.prompt, "prompt"), columns.prompt)
    text = "\n".join(message["content"] for message in messages if message["role"] == "user")
    if framing.instruction:
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        messages[last]["content"] += "\n" + framing.instruction
    if framing.system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": framing.system})
    answer = _answer(_field(record, columns.answer, "answer"), columns.answer, pattern)
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
        "subject": _text(record, columns.subject),
        "level": _number(record, columns.level),
        "pass_rate": _number(record, columns.pass_rate, low=0.0, high=1.0),
        "quality": _number(record, columns.quality, low=0.0, high=1.0),
        "solution": _text(record, columns.solution),
        "drop_reason": None,
    }


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame({name: [row[name] for row in rows] for name in SCHEMA}, schema=SCHEMA)


def _field(record: Record, column: str, role: str) -> Any:
    value = _lookup(record, column)
    if value is _ABSENT:
        found = ", ".join(sorted(record)) or "none"
        raise MissingColumnError(column, f"no column {column!r} for the {role}; the columns are {found} "
                                 f"(set data.columns.{role} or data.preset)")
    return value


def _lookup(record: Record, column: str) -> Any:
    """The value of a column, or of a field in a nested one (`a.b`)."""
    value: Any = record
    for part in [column] if column in record else column.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
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
        matched = next((group for group in found.groups() if group is not None), None) if found else None
        if matched is None:
            raise ValueError(f"{column} does not match data.answer_pattern: {_brief(answer)}")
        answer = matched
    if not answer.strip():
        raise ValueError(f"{column} is empty")
    return answer.strip()


def _optional(record: Record, column: str | None) -> Any:
    """The value of a column that a row may lack; None where it does, or where a CSV file has nothing there."""
    value = _ABSENT if column is None else _lookup(record, column)
    return None if value is _ABSENT or value == "" else value


def _text(record: Record, column: str | None) -> str | None:
    value = _optional(record, column)
    return None if value is None else str(value)


def _number(record: Record, column: str | None, low: float = -math.inf, high: float = math.inf) -> float | None:
    value = _optional(record, column)
    if isinstance(value, str):
        value = _NUMBER_WORDS.get(value.strip().lower(), re.sub(r"^Level\s+", "", value))
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{column} is {_brief(value)}: expected a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{column} = {number}: expected a finite number")
    if not low <= number <= high:
        raise ValueError(f"{column} = {number}: expected a number from {low} to {high}")
    return number


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
