"""Stage `difficulty`: features and labels → how hard every prompt is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saerl_core import difficulty as core
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DifficultyConfig
from saerl_core.features import take
from tasks.caching import stage
from tasks.extract import load_rows
from tasks.label import load_pass_rates
from tasks.scores import seal_scores


@stage("difficulty", core.VERSION)
def difficulty(root: Path, features: ArtifactRef, labels: ArtifactRef | None, config: DifficultyConfig) -> ArtifactRef:
    """Fit the proxy, measure it, and score every usable prompt; 0.5 for all where it is not used."""
    rows = load_rows(features)
    probe, report = None, core.unlabelled()
    if labels is not None:
        labelled, pass_rate = load_pass_rates(labels)
        probe, report = core.fit(take(rows, labelled), pass_rate, config)
    scores = probe.predict(rows) if probe else np.full(len(rows), 0.5)
    return seal_scores(root, "difficulty", scores, report.to_json(), probe)
