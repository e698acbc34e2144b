"""Small JSON files that are written once and read much later: each carries a hash of all else that it says.

A flipped bit in a number or a name is still JSON. So the field `sha256` tells whether the rest is what was written. A
file without one is taken as it is, for people write such files, too; whoever reads it must refuse fields that he does
not know, or a flip in the field's own name would go unseen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saerl_core.artifact import write_file
from saerl_core.hashing import hash_value

FIELD = "sha256"


def write(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object and its hash, atomically."""
    sealed = {**value, FIELD: hash_value(value)}
    write_file(path, (json.dumps(sealed, indent=1, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """The object that was written.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or not what was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    seal = value.pop(FIELD, None)
    if seal is not None and seal != hash_value(value):
        raise ValueError("changed since it was written (SHA-256 differs)")
    return value
