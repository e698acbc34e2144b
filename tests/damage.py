"""What disks and power cuts do to files."""

from __future__ import annotations

import os
from pathlib import Path


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, and nothing that `stat` shows."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    """Lose the second half of a file, as after a power cut."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
