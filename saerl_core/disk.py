"""Disk is checked before it is filled: what a step will write at most, against what is free there."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from pathlib import Path

from rich.filesize import decimal
from safetensors import SafetensorError, safe_open

from saerl_core.errors import ArtifactError
from saerl_core.sae_spec import SaeSpec

_BYTES_PER_ENTRY = 12
"""A feature that fires on a prompt: its number, mean and maximum."""
_CHECKPOINT_BYTES_PER_WEIGHT = 17
"""verl's checkpoint: float32 weights, AdamW's two moments, a copy for transformers. The toy's take 16.1."""
_CHECKPOINTS_AT_ONCE = 3
"""Two are kept; a third is being written."""


def feature_bytes(prompts: int, tokens_each: float, sae: SaeSpec) -> int:
    """What the features of so many prompts may take (bytes), as if every token fired features of its own."""
    active = min(sae.d_sae, round(tokens_each * (sae.k or sae.l0 or sae.d_sae / 50)))
    return prompts * active * _BYTES_PER_ENTRY


def checkpoint_bytes(policy: Path) -> int:
    """What a training run's checkpoints take at most (bytes), for the policy in a folder."""
    return _CHECKPOINTS_AT_ONCE * _CHECKPOINT_BYTES_PER_WEIGHT * _weights(policy)


def require(folder: Path, needed: int, what: str) -> None:
    """Make sure that a folder's disk has room.

    Args:
        folder: Where it will be written; need not exist yet.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        ArtifactError: there is less.
    """
    free = free_bytes(folder)
    if free < needed:
        raise ArtifactError(f"{folder}: {what} may take {decimal(needed)}, {decimal(free)} are free: make room (`saerl "
                            "gc` shows what nothing refers to), or set `workspace` to a larger disk")


def used_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, or of a file. What disappears meanwhile counts nothing."""
    # rglob fails where a folder vanishes
    below = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    total = 0
    for file in [folder] if folder.is_file() else below:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds a folder, or will hold it."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _weights(folder: Path) -> int:
    """Number of weights in a folder's safetensors files; from their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            total += file.stat().st_size // 2
    return total
