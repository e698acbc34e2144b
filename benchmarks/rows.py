"""Real prompts for benchmarks: gzipped JSON lines, and lots that do not depend on the order of a file."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Chat = list[dict[str, str]]


def load(data: Path, name: str) -> Rows:
    """Rows of one file of the folder `data`."""
    return read_gzip(data / f"{name}.jsonl.gz")


def read_gzip(path: Path) -> Rows:
    """Rows of a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def chats(rows: Rows) -> list[Chat]:
    """Problems as chats."""
    return [[{"role": "user", "content": row["problem"]}] for row in rows]


def lot(text: str) -> float:
    """A number in [0, 1) that belongs to a text."""
    return int(hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:13], 16) / 16**13


def unique(rows: Rows) -> Rows:
    """The first row of each text."""
    return list({" ".join(row["problem"].split()): row for row in reversed(rows)}.values())[::-1]
