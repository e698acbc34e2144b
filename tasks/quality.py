"""Stages `corrupt`, `quality` and `suspicion`: examples of bad prompts → a probe → how good every prompt is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from saerl_core import artifact, corruptions
from saerl_core import quality as core
from saerl_core.artifact import ArtifactRef
from saerl_core.config import QualityConfig
from saerl_core.features import FeatureRows
from saerl_core.probes import inputs
from saerl_core.prompts import MESSAGES
from saerl_core.quality import INTACT, Examples
from tasks.agreement import load_agreement
from tasks.caching import stage
from tasks.extract import load_messages, load_rows
from tasks.label import load_labels
from tasks.likelihood import load_likelihood
from tasks.read import TABLE, load_usable, with_feature_keys
from tasks.scores import seal_scores

_REPORT = "report.json"


@stage("corrupt", core.VERSION)
def corrupt(root: Path, table: ArtifactRef, config: QualityConfig, instruction: str) -> ArtifactRef:
    """Damage copies of some prompts. The artifact is read by `extract` like a prompt table."""
    made = corruptions.make(load_messages(table), config.corruptions, config.count, config.seed, instruction)
    frame = pl.DataFrame(
        {"messages": [damaged.messages for damaged in made], "row": [damaged.row for damaged in made],
         "kind": [damaged.kind for damaged in made], "drop_reason": [None] * len(made)},
        schema={"messages": MESSAGES, "row": pl.Int64, "kind": pl.String, "drop_reason": pl.String})
    with artifact.staging(root / "artifacts") as staged:
        with_feature_keys(frame).write_parquet(staged / TABLE)
        return artifact.seal(staged, "damaged", {"stage": "corrupt", "rows": frame.height})


@stage("quality", core.VERSION)
def quality(root: Path, features: ArtifactRef, table: ArtifactRef, labels: ArtifactRef | None,
            damaged: ArtifactRef | None, damaged_features: ArtifactRef | None, config: QualityConfig) -> ArtifactRef:
    """Fit the probe, measure it, and score every usable prompt; 1 for all where it is not used."""
    rows = load_rows(features)
    if config.method == "none":
        probe, report = None, core.unused(config, "quality.method is none: nothing is filtered")
    elif config.method == "random":
        scores, report = core.by_lot(load_usable(table)["key"].to_list(), config)
        return seal_scores(root, "quality", scores, report.to_json(), None)
    elif damaged is not None and damaged_features is not None:
        made = pl.read_parquet(damaged.path / TABLE, columns=["row", "kind"])
        probe, report = core.fit(_pairs(rows, load_rows(damaged_features), made), config)
    else:
        known = _rated(load_usable(table)) if config.labels == "column" else _solved(labels)
        probe, report = core.fit(_labelled(rows, known), config)
    scores = probe.predict(inputs(rows)) if probe else np.ones(len(rows))
    return seal_scores(root, "quality", scores, report.to_json(), probe)


def _pairs(rows: FeatureRows, damaged: FeatureRows, made: pl.DataFrame) -> Examples:
    """Intact prompts and their damaged copies."""
    n, originals = made.height, made["row"].to_numpy()
    return Examples(x=sp.csr_array(sp.vstack([inputs(rows)[originals], inputs(damaged)])),
                    good=np.repeat([True, False], n), group=np.tile(np.arange(n), 2),
                    kind=np.array([INTACT] * n + made["kind"].to_list()))


def _labelled(rows: FeatureRows, known: pl.DataFrame) -> Examples:
    """Prompts that a column or their rollouts call good or bad."""
    good = known["good"].to_numpy()
    return Examples(x=inputs(rows)[known["row"].to_numpy()], good=good, group=np.arange(len(good)),
                    kind=np.where(good, INTACT, "bad"))


def _rated(usable: pl.DataFrame) -> pl.DataFrame:
    return usable.select(pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
                         (pl.col("quality") >= 0.5).alias("good")).drop_nulls()


def _solved(labels: ArtifactRef | None) -> pl.DataFrame:
    assert labels is not None
    return load_labels(labels).filter(~pl.col("doubtful")).select("row", (pl.col("pass_rate") > 0).alias("good"))


@stage("suspicion", core.VERSION)
def suspicion(root: Path, evidence: ArtifactRef, config: QualityConfig) -> ArtifactRef:
    """Which answer keys are likely wrong, if what speaks against a key tells right ones from wrong ones at all.

    `evidence` is of the stage that `quality.suspect_by` names.
    """
    if config.suspect_by == "likelihood":
        found = load_likelihood(evidence).with_row_index("row")
        doubt, wrong = pl.col("answer_nll"), pl.col("wrong_nll")
    else:
        found = load_agreement(evidence)
        doubt, wrong = -pl.col("agreement"), -pl.col("made_wrong")
    judged = found.select("row", doubt=doubt, wrong=wrong).drop_nulls("doubt")
    tried = judged.drop_nulls("wrong")
    report = core.suspicion(tried["doubt"].to_numpy(), tried["wrong"].to_numpy(), judged.height, found.height, config)
    most = int(judged.height * config.suspect_answers) if report.used else 0
    suspects = np.sort(judged["row"].to_numpy()[np.argsort(-judged["doubt"].to_numpy(), kind="stable")[:most]])
    with artifact.staging(root / "artifacts") as staged:
        artifact.write_json(staged / _REPORT, {**report.to_json(), "rows": suspects.tolist()})
        return artifact.seal(staged, "suspicion", {"stage": "suspicion", "used": report.used})


def load_suspicion(ref: ArtifactRef) -> tuple[list[int], dict[str, Any]]:
    """(suspected rows among the usable prompts, report)."""
    report = json.loads((ref.path / _REPORT).read_text(encoding="utf-8"))
    return report.pop("rows"), report
