"""The most telling line of a long log: what a person would look for first."""

from __future__ import annotations

import re
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_RAY_PREFIX = re.compile(r"^\((?:raylet|(?:[\w:.]+ )?pid=\d+(?:, ip=[\w.:]+)?)\)\s?")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|OutOfMemory)(?:\(\w+\))?: \S.*")
_WRAPPERS = ("RayTaskError", "RayActorError", "ActorDiedError", "CalledProcessError")
_READ_BYTES = 2_000_000
_LONGEST = 300


def telling_line(log: Path, start: int = 0) -> str:
    """The last exception in a log that does not merely wrap another one; else its last line that says anything.

    Args:
        log: A file that may be large; only its end is read.
        start: Look at what was written after this offset (bytes).
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - _READ_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return "no log was written"
    lines = [_RAY_PREFIX.sub("", _ANSI.sub("", line)).strip() for line in text.splitlines()]
    exceptions = [line for line in lines if _EXCEPTION.fullmatch(line)]
    causes = [line for line in exceptions if not any(wrapper in line.partition(":")[0] for wrapper in _WRAPPERS)]
    found = (causes or exceptions or [line for line in lines if line] or ["the log is empty"])[-1]
    return found if len(found) <= _LONGEST else found[: _LONGEST - 3] + "..."
