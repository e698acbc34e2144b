"""Stages `corrupt` and `quality`: damaged copies of the user's own prompts → a probe → how intact every prompt is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from saerl_core import artifact, corruptions
from saerl_core import quality as core
from saerl_core.artifact import ArtifactRef
from saerl_core.config import QualityConfig
from saerl_core.features import take
from saerl_core.prompts import MESSAGES
from tasks.caching import stage
from tasks.extract import load_messages, load_rows
from tasks.read import TABLE
from tasks.scores import seal_scores


@stage("corrupt", core.VERSION)
def corrupt(root: Path, table: ArtifactRef, config: QualityConfig, instruction: str) -> ArtifactRef:
    """Damage copies of some prompts. The artifact is read by `extract` like a prompt table."""
    made = corruptions.make(load_messages(table), config.corruptions, config.count, config.seed, instruction)
    frame = pl.DataFrame(
        {"messages": [damaged.messages for damaged in made], "row": [damaged.row for damaged in made],
         "kind": [damaged.kind for damaged in made], "drop_reason": [None] * len(made)},
        schema={"messages": MESSAGES, "row": pl.Int64, "kind": pl.String, "drop_reason": pl.String})
    with artifact.staging(root / "artifacts") as staged:
        frame.write_parquet(staged / TABLE)
        return artifact.seal(staged, "damaged", {"stage": "corrupt", "rows": frame.height})


@stage("quality", core.VERSION)
def quality(root: Path, features: ArtifactRef, damaged: ArtifactRef | None, damaged_features: ArtifactRef | None,
            config: QualityConfig) -> ArtifactRef:
    """Fit the probe, measure it, and score every usable prompt; 1 for all where it is not used."""
    rows = load_rows(features)
    probe, report = None, core.switched_off()
    if damaged is not None and damaged_features is not None:
        made = pl.read_parquet(damaged.path / TABLE, columns=["row", "kind"])
        probe, report = core.fit(take(rows, made["row"].to_numpy()), load_rows(damaged_features),
                                 made["kind"].to_list(), config)
    scores = probe.predict(rows) if probe else np.ones(len(rows))
    return seal_scores(root, "quality", scores, report.to_json(), probe)
