"""All of it → a manifest: a folder that is complete or absent, the contract between curation and training.

    train.parquet     verl's schema, rows in training order, batch after batch
    dropped.parquet   every prompt that is not trained on, with the reason
    scores.parquet    every prompt with its cluster, scores and label, if any
    clusters.safetensors  centroids, idf and their figures: what the next run needs to keep these clusters
    report.html       the same for people; summary.md is its short form
    manifest.json     written last: provenance, counts, figures, and each file's hash

In the header, of the shape of the data: `clusters.sizes`, `.cards`; `.choice`, how k was chosen (k and its curve of
stability: k, mean, error); `.drift`, `.kept`, how far prompts are from the clusters of a previous manifest, and whether
those were kept; `batches_overlap`, the mean pairwise cosine in each batch, `ours` and `shuffled`, one figure a batch.

The folder is named by the hash of manifest.json, which names the hash of every other file. Nothing in it depends on
time or place: the same inputs give the same bytes.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from saerl_core import artifact
from saerl_core.artifact import ArtifactRef
from saerl_core.config import RunConfig, content
from saerl_core.errors import ArtifactError
from saerl_core.prompts import MESSAGES
from saerl_core.schedule import Schedule

VERSION = 3
HEADER = "manifest.json"
CODEBOOK = "clusters.safetensors"
_LIBRARIES = ("saerl", "torch", "transformers", "sae-lens", "faiss-cpu", "polars", "scikit-learn", "scipy", "numpy",
              "matplotlib", "pillow", "jinja2")


@dataclass(frozen=True)
class Curation:
    """What the stages found out, row by row of the prompt table."""

    table: pl.DataFrame
    """prompt table (`prompts.SCHEMA`), all n rows, `drop_reason` set where a prompt is not trained on"""
    cluster: np.ndarray
    """int32 [n], -1 where a prompt was not clustered"""
    difficulty: np.ndarray
    """float [n], NaN where there is none"""
    quality: np.ndarray
    """float [n], NaN where there is none"""
    pass_rate: np.ndarray
    """float [n], the label, NaN where there is none"""
    schedule: Schedule
    """its row numbers are those of the table"""
    doubtful: np.ndarray | None = None
    """bool [n], true where there is a label that is not believed; None: nowhere"""


def training_frame(curation: Curation) -> pl.DataFrame:
    """The rows that verl reads, in order: batch k of the file is step k of the training."""
    schedule = curation.schedule
    order = schedule.batches.ravel()
    size = schedule.batches.shape[1]
    picked = curation.table[order]
    batch = np.repeat(np.arange(len(schedule.batches)), size)
    extra = pl.DataFrame({
        "id": picked["id"],
        "key": picked["key"],
        "index": np.arange(len(order)),
        "split": pl.Series(["train"] * len(order), dtype=pl.String),
        "epoch": schedule.epoch[batch].astype(np.int64),
        "batch": batch,
        "cluster": curation.cluster[order].astype(np.int64),
        "difficulty": _rounded(curation.difficulty[order]),
        "quality": _rounded(curation.quality[order]),
    })
    return verl_frame(picked, extra)


def heldout_frame(table: pl.DataFrame) -> pl.DataFrame:
    """An evaluation set in verl's schema, in the file's order."""
    return verl_frame(table, table.select(
        "id", "key", "subject", "level", pl.int_range(pl.len(), dtype=pl.Int64).alias("index"),
        pl.lit("heldout").alias("split")))


def verl_frame(table: pl.DataFrame, extra: pl.DataFrame) -> pl.DataFrame:
    """Rows of a prompt table in verl's schema; `extra` becomes `extra_info`."""
    reward = table.select(pl.struct(pl.lit("rule").alias("style"), pl.col("answer").alias("ground_truth")))
    return pl.DataFrame({
        "data_source": table["data_source"],
        "prompt": table["messages"],
        "ability": pl.Series(["math"] * table.height, dtype=pl.String),
        "reward_model": reward.to_series(),
        "extra_info": extra.to_struct("extra_info"),
    }, schema_overrides={"prompt": MESSAGES})


def dropped_frame(curation: Curation) -> pl.DataFrame:
    """The prompts that are not trained on, with their reason, in the file's order."""
    return curation.table.filter(pl.col("drop_reason").is_not_null()).select(
        "key", "id", "text", "answer", pl.col("drop_reason").alias("reason"))


def scores_frame(curation: Curation) -> pl.DataFrame:
    """Every prompt with what the stages say of it, in the file's order."""
    return curation.table.select("key", "id", "subject", "level", pl.col("drop_reason").alias("dropped")).with_columns(
        cluster=pl.Series(curation.cluster, dtype=pl.Int32),
        difficulty=pl.Series(_rounded(curation.difficulty)).fill_nan(None),
        quality=pl.Series(_rounded(curation.quality)).fill_nan(None),
        pass_rate=pl.Series(_rounded(curation.pass_rate)).fill_nan(None),
        doubtful=pl.lit(False) if curation.doubtful is None else pl.Series(curation.doubtful),
    )


def counts(curation: Curation) -> dict[str, Any]:
    """Read = kept + dropped, and dropped by reason."""
    reasons = Counter(curation.table["drop_reason"].drop_nulls())
    return {
        "read": curation.table.height,
        "kept": int(curation.table["drop_reason"].null_count()),
        "dropped": sum(reasons.values()),
        "dropped_by_reason": dict(sorted(reasons.items())),
    }


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the manifest's content: not how an SAE or a policy is trained, nor how it is measured."""
    apart = ("sae_training", "train", "evaluation", "compare")
    return {name: value for name, value in content(config).items() if name not in apart}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number here."""
    return {name: metadata.version(name) for name in _LIBRARIES} | {"python": platform.python_version()}


def write_manifest(root: Path, curation: Curation, provenance: Mapping[str, Any],
                   render: Callable[[Mapping[str, Any]], Mapping[str, str]], codebook: bytes) -> ArtifactRef:
    """Write a manifest folder under `root`.

    Args:
        root: The workspace's `manifests` folder.
        curation: The stages' findings.
        provenance: JSON-able header fields: hashes of the inputs, settings, figures.
        render: Header fields → text files to add, by name: the report page and its summary.
        codebook: The clusters (`clusters.codebook_bytes`).

    Raises:
        AssertionError: rows were lost or repeated: a bug of ours, stopped before it is written.
    """
    schedule = curation.schedule
    number = counts(curation)
    undropped = np.flatnonzero(curation.table["drop_reason"].is_null().to_numpy())
    kept = np.unique(schedule.batches)
    assert np.array_equal(kept, undropped), "every prompt must be either trained on or dropped with a reason"
    header = {
        "format": VERSION,
        "prompts": number,
        "batch_size": schedule.batches.shape[1],
        "batches": len(schedule.batches),
        "epochs": int(schedule.epoch[-1]) + 1,
        "libraries": library_versions(),
        **provenance,
    }
    with artifact.staging(root) as staged:
        training_frame(curation).write_parquet(staged / "train.parquet")
        dropped_frame(curation).write_parquet(staged / "dropped.parquet")
        scores_frame(curation).write_parquet(staged / "scores.parquet")
        (staged / CODEBOOK).write_bytes(codebook)
        for name, text in render(header).items():
            (staged / name).write_text(text, encoding="utf-8")
        return artifact.seal(staged, "", header, HEADER)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The header of a manifest, its `id` added; files are not checked.

    Raises:
        ArtifactError: not a manifest, or one of another format.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such manifest")
    header = artifact.read_header(folder, HEADER)
    if header.get("format") != VERSION:
        raise ArtifactError(f"{folder / HEADER}: format {header.get('format')!r}, where this SAERL reads {VERSION}: "
                            "curate again")
    return {**header, "id": folder.resolve().name}


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Check every byte of a manifest; returns its header.

    Raises:
        ArtifactError: names the first file that is missing, extra, or changed.
    """
    read_manifest(folder)
    header = artifact.verify_folder(folder, folder.resolve().name, HEADER)
    number = header.get("prompts")
    if not isinstance(number, dict) or not all(isinstance(number.get(of), int) for of in ("read", "kept", "dropped")):
        raise ArtifactError(f"{folder / HEADER}: no manifest's header: it lacks `prompts`, the numbers of those that "
                            "were read, kept and dropped")
    if number["read"] != number["kept"] + number["dropped"]:
        raise ArtifactError(f"{folder / HEADER}: read {number['read']} is not kept {number['kept']} + dropped "
                            f"{number['dropped']}")
    return {**header, "id": folder.resolve().name}


def _rounded(values: np.ndarray) -> np.ndarray:
    """Six decimals: more would be noise of the arithmetic."""
    return np.round(np.asarray(values, dtype=np.float64), 6)
