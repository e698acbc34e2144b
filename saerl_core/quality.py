"""Quality in [0, 1], higher = better: a probe that tells intact prompts from damaged copies of them.

The probe must earn its place. It is fitted on some prompts and measured on others; where it does not beat chance
there, or where it merely memorises, nothing is filtered and the report says so. What it can see is text that was
damaged. It cannot see a wrong answer key: that is not in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from saerl_core.config import QualityConfig
from saerl_core.features import FeatureRows, concatenate, take
from saerl_core.probes import Probe, auc, bootstrap_interval, fit_logistic

VERSION = 1
_HELD_OUT_SHARE = 0.3


@dataclass(frozen=True)
class QualityReport:
    """What the probe is worth on prompts that it has not seen, neither intact nor damaged."""

    method: str
    used: bool
    why: str
    pairs: int
    """prompts with a damaged copy"""
    auc: float | None
    """held out, intact against damaged"""
    auc_low: float | None
    auc_high: float | None
    auc_train: float | None
    auc_by_kind: dict[str, float]
    """held out, each kind of damage against its own originals"""
    held_out: list[tuple[float, str]]
    """(score, `intact` or kind of damage)"""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def switched_off() -> QualityReport:
    """The report of a run with `quality.method: none`."""
    why = "quality.method is none: nothing is filtered"
    return QualityReport("none", False, why, 0, None, None, None, None, {}, [])


def fit(intact: FeatureRows, damaged: FeatureRows, kinds: Sequence[str],
        config: QualityConfig) -> tuple[Probe | None, QualityReport]:
    """Fit the probe on most pairs, measure it on the rest.

    Args:
        intact: Features of n prompts.
        damaged: Features of their damaged copies, in the same order.
        kinds: Kind of damage of each copy.
        config: Method and gate.

    Returns:
        The probe that was measured (None where the gate is closed), and its report.
    """
    n = len(intact)
    order = np.random.default_rng(config.seed).permutation(n)
    cut = round(n * _HELD_OUT_SHARE)
    held_out, fit_rows = np.sort(order[:cut]), np.sort(order[cut:])
    probe = fit_logistic(concatenate([take(intact, fit_rows), take(damaged, fit_rows)]),
                         np.repeat([True, False], len(fit_rows)))
    scores_intact, scores_damaged = probe.predict(intact), probe.predict(damaged)

    def area(rows: np.ndarray) -> float:
        return auc(np.concatenate([scores_intact[rows], scores_damaged[rows]]), np.repeat([True, False], len(rows)))

    held_out_auc, train_auc = area(held_out), area(fit_rows)
    low, high = bootstrap_interval(lambda i: area(held_out[i]), len(held_out))
    kind = np.asarray(kinds)
    by_kind = {name: round(area(held_out[kind[held_out] == name]), 6) for name in sorted(set(kinds))}
    figures = f"held-out AUC {held_out_auc:.3f} (95% interval {low:.3f} to {high:.3f}), training AUC {train_auc:.3f}"
    if low <= config.min_auc:
        used, why = False, f"{figures}: not above quality.min_auc = {config.min_auc}, so nothing is filtered"
    elif train_auc - held_out_auc > config.max_gap:
        used, why = False, f"{figures}: the probe memorises (quality.max_gap = {config.max_gap}), nothing is filtered"
    else:
        used, why = True, figures
    report = QualityReport(
        method=config.method, used=used, why=why, pairs=n, auc=round(held_out_auc, 6), auc_low=round(low, 6),
        auc_high=round(high, 6), auc_train=round(train_auc, 6), auc_by_kind=by_kind,
        held_out=[(round(float(scores_intact[i]), 4), "intact") for i in held_out]
        + [(round(float(scores_damaged[i]), 4), str(kind[i])) for i in held_out],
    )
    return (probe if used else None), report


def low_quality(scores: np.ndarray, config: QualityConfig) -> tuple[np.ndarray, str]:
    """Which prompts to drop, and a note where the cap on their share had to step in.

    Args:
        scores: float [n].
        config: `threshold` and `max_drop_share`.

    Returns:
        bool [n] and a note (empty where all is well).
    """
    below = scores < config.threshold
    most = int(len(scores) * config.max_drop_share)
    if below.sum() <= most:
        return below, ""
    worst = np.zeros_like(below)
    worst[np.argsort(scores, kind="stable")[:most]] = True
    return worst, (f"{int(below.sum())} prompts score below quality.threshold; only the worst {most} are dropped "
                   f"(quality.max_drop_share = {config.max_drop_share}): does the probe fit this data set?")
