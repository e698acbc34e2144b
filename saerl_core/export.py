"""A manifest's rows for other trainers, in the same order: JSON lines, or a `datasets` folder."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from saerl_core import artifact
from saerl_core.errors import ConfigError
from saerl_core.manifest import verify_manifest

FORMATS = ("jsonl", "datasets")
_FROM_EXTRA = ("id", "batch", "cluster", "difficulty", "quality")


def export(manifest: Path, out: Path, kind: str) -> int:
    """Write a manifest's training rows to `out`, complete or not at all.

    JSON lines have `messages`, `answer`, `id`, `batch`, `cluster`, `difficulty` and `quality`; a `datasets` folder has
    the same columns, the messages as `prompt`, as TRL expects them.

    Args:
        manifest: A manifest's folder; every byte of it is checked first.
        out: A file or folder that does not exist yet.
        kind: One of `FORMATS`.

    Returns:
        Number of rows.

    Raises:
        ArtifactError: the manifest is damaged.
        ConfigError: `out` exists, or cannot be written.
    """
    verify_manifest(manifest)
    if out.exists():
        raise ConfigError(f"{out}: exists already; name another place")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}; name another place") from error
    rows = training_rows(manifest)
    if kind == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows.iter_rows(named=True))
        artifact.write_file(out, "".join(line + "\n" for line in lines).encode())
    else:
        _save_dataset(rows.rename({"messages": "prompt"}), out)
    return rows.height


def training_rows(manifest: Path) -> pl.DataFrame:
    """The rows of a manifest in training order, flat."""
    train = pl.read_parquet(manifest / "train.parquet")
    extra = train["extra_info"].struct.unnest().select(_FROM_EXTRA)
    return pl.DataFrame({
        "messages": train["prompt"],
        "answer": train["reward_model"].struct.field("ground_truth"),
    }).hstack(extra).with_columns(pl.col("difficulty", "quality").fill_nan(None))


def _save_dataset(rows: pl.DataFrame, out: Path) -> None:
    import datasets

    data = datasets.Dataset.from_polars(rows)
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with artifact.staging(out.parent) as staged:
            data.save_to_disk(staged)
            staged.chmod(0o755)
            staged.rename(out)
    finally:
        if bars:
            datasets.enable_progress_bars()
