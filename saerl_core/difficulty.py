"""Difficulty in [0, 1], higher = harder: a proxy for 1 − pass rate, learned from a labelled subset.

The figures are of held-out rows: each labelled prompt is predicted by a probe that has not seen it. A proxy that
does not beat chance there is not used: every prompt then counts as equally hard, and the report says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import KFold

from saerl_core.config import DifficultyConfig
from saerl_core.features import FeatureRows, take
from saerl_core.probes import Probe, bootstrap_interval, fit_elastic_net, spearman

VERSION = 1


@dataclass(frozen=True)
class DifficultyReport:
    """What the proxy is worth, on labelled prompts that it has not seen."""

    method: str
    used: bool
    why: str
    labels: int
    mean_pass_rate: float | None
    spearman: float | None
    """rank correlation of predicted and measured difficulty, held out"""
    spearman_low: float | None
    spearman_high: float | None
    features: int
    """features with a weight other than 0"""
    held_out: list[tuple[float, float]]
    """(predicted, measured) difficulty of each labelled prompt"""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def unlabelled() -> DifficultyReport:
    """The report of a run that has no labels."""
    return DifficultyReport("none", False, "no labels: every prompt counts as equally hard", 0, None, None, None, None,
                            0, [])


def fit(rows: FeatureRows, pass_rate: np.ndarray, config: DifficultyConfig) -> tuple[Probe | None, DifficultyReport]:
    """Fit the proxy on labelled prompts and measure it on held-out ones.

    Args:
        rows: Features of the n labelled prompts.
        pass_rate: float [n] in [0, 1].
        config: Method and its settings.

    Returns:
        The probe, fitted on all labels (None where the gate is closed), and its report.
    """
    target = 1 - pass_rate
    predicted = np.zeros(len(target))
    for fit_rows, held_out in KFold(config.folds, shuffle=True, random_state=0).split(target):
        probe = _fit(take(rows, fit_rows), target[fit_rows], config)
        predicted[held_out] = probe.predict(take(rows, held_out))
    rho = spearman(predicted, target)
    low, high = bootstrap_interval(lambda i: spearman(predicted[i], target[i]), len(target))
    used = low > 0
    probe = _fit(rows, target, config)
    why = (f"held-out Spearman {rho:.2f} (95% interval {low:.2f} to {high:.2f})" if used else
           f"held-out Spearman {rho:.2f} (95% interval {low:.2f} to {high:.2f}) does not beat chance: every prompt "
           "counts as equally hard")
    report = DifficultyReport(
        method=config.method, used=used, why=why, labels=len(target), mean_pass_rate=round(float(pass_rate.mean()), 6),
        spearman=round(rho, 6), spearman_low=round(low, 6), spearman_high=round(high, 6), features=len(probe.features),
        held_out=[(round(float(p), 4), round(float(t), 4)) for p, t in zip(predicted, target, strict=True)],
    )
    return (probe if used else None), report


def _fit(rows: FeatureRows, target: np.ndarray, config: DifficultyConfig) -> Probe:
    return fit_elastic_net(rows, target, l1_ratio=config.l1_ratio, folds=config.folds,
                           min_rows_per_feature=config.min_rows_per_feature)
