"""Stage `difficulty`: features, labels and what was seen in training → how hard every prompt is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from saerl_core import difficulty as core
from saerl_core.artifact import ArtifactRef
from saerl_core.config import DifficultyConfig
from saerl_core.difficulty import LEARNED, Labels, Seen
from saerl_core.errors import ConfigError
from saerl_core.posterior import discount
from saerl_core.rl.consumed import observed_rewards
from tasks.caching import stage
from tasks.extract import load_rows
from tasks.label import load_labels
from tasks.likelihood import load_likelihood
from tasks.read import load_usable
from tasks.scores import seal_scores


@stage("difficulty", core.VERSION)
def difficulty(root: Path, features: ArtifactRef, table: ArtifactRef, labels: ArtifactRef | None,
               likelihood: ArtifactRef | None, rewards: Path | None, rewards_hash: str | None,
               config: DifficultyConfig) -> ArtifactRef:
    """Estimate, measure the proxy, and score every usable prompt. `rewards_hash` stands for the folder `rewards`."""
    rows, usable = load_rows(features), load_usable(table)
    plain = None
    if config.method not in (*LEARNED, "none"):
        nll = load_likelihood(likelihood)["prompt_nll"].to_numpy() if likelihood is not None else None
        plain = core.read_off(rows, config, usable["level"].cast(pl.Float64).fill_null(np.nan).to_numpy(), nll)
    scores, probe, report = core.estimate(rows, _labels(labels), plain, _seen(rewards, usable, config.decay), config)
    return seal_scores(root, "difficulty", scores, report.to_json(), probe)


def _labels(ref: ArtifactRef | None) -> Labels | None:
    if ref is None:
        return None
    found = load_labels(ref).filter(~pl.col("doubtful"))
    return Labels(found["row"].to_numpy(), found["pass_rate"].to_numpy(),
                  found["samples"].cast(pl.Float64).fill_null(np.inf).to_numpy())


def _seen(run: Path | None, usable: pl.DataFrame, decay: float) -> Seen | None:
    if run is None:
        return None
    observed = observed_rewards(run)
    if not observed["successes"].is_between(0, observed["trials"]).all():
        raise ConfigError(f"difficulty.rewards: {run}: holds rewards below 0 or above 1, which give no pass rate; "
                          "leave the field out")
    counted = usable.select("key").join(discount(observed, decay), on="key", how="left",
                                        maintain_order="left").fill_null(0.0)
    return Seen(counted["successes"].to_numpy(), counted["trials"].to_numpy())
