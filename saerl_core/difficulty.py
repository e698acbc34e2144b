"""Difficulty in [0, 1], higher = harder: what 1 − pass rate is believed to be.

A proxy comes first: learned from labelled prompts (`ridge`, `elastic_net`), or read off the prompt without labels. Then
evidence corrects it: a prompt's own answers, sampled for its label or seen in an earlier training, move its prediction
as a Beta posterior does (`posterior`).

The figures are of held-out rows: each labelled prompt is predicted by a probe that has not seen it. A proxy that does
not beat chance there is not used, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata
from sklearn.model_selection import KFold

from saerl_core.config import DifficultyConfig
from saerl_core.errors import DataError
from saerl_core.features import FeatureRows
from saerl_core.posterior import posterior_mean
from saerl_core.probes import Probe, bootstrap_interval, fit_elastic_net, fit_ridge, inputs, spaced, spearman

VERSION = 4
LEARNED = ("ridge", "elastic_net")
"""The methods that need labels."""
_MOST_LABELS = 5000
"""A probe is fitted on at most so many labels: more change nothing that is seen (docs/LOG.md), and cost minutes."""
_HELD_OUT_SHOWN = 2000


@dataclass(frozen=True)
class Labels:
    """Pass rates, or their stand-ins, of some of n prompts."""

    rows: np.ndarray
    """int64 [m], row numbers, ascending"""
    pass_rate: np.ndarray
    """float64 [m] in [0, 1]"""
    samples: np.ndarray
    """float64 [m], answers behind each; infinite where that is not known, and the label stands as it is"""


@dataclass(frozen=True)
class Seen:
    """Answers seen in an earlier training, for each of n prompts."""

    successes: np.ndarray
    """float64 [n], sum of rewards"""
    trials: np.ndarray
    """float64 [n]"""


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
    features: int | None
    """features with a weight other than 0; None where nothing is learned"""
    observed: int
    """prompts whose score was corrected by answers seen in training"""
    held_out: list[tuple[float, float]]
    """(predicted, measured) difficulty of labelled prompts, at most 2,000 of them"""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def read_off(rows: FeatureRows, config: DifficultyConfig, level: np.ndarray, nll: np.ndarray | None) -> np.ndarray:
    """The proxies that need no label, each on its own scale.

    Args:
        rows: Features of n prompts.
        config: `method` says which one.
        level: float [n], the data set's own level; NaN where it has none (taken as the median).
        nll: float [n], mean negative log-likelihood of a prompt's tokens; needed for `nll` only.

    Raises:
        DataError: `level` is asked for and no prompt has one.
    """
    tokens = (rows.tokens + rows.masked + rows.cut).astype(np.float64)
    match config.method:
        case "active_features":
            return rows.active().astype(np.float64)
        case "activation_mass":  # all activations of all tokens; the mean per token tells far less (docs/LOG.md)
            return np.asarray(rows.matrix().sum(axis=1)).ravel() * rows.tokens
        case "level":
            if np.isnan(level).all():
                raise DataError("difficulty.method is 'level', but no usable prompt has one (data.columns.level)")
            return np.where(np.isnan(level), np.nanmedian(level), level)
        case "nll":
            assert nll is not None
            return nll
        case "length":
            return tokens
    raise AssertionError(config.method)


def estimate(rows: FeatureRows, labels: Labels | None, plain: np.ndarray | None, seen: Seen | None,
             config: DifficultyConfig) -> tuple[np.ndarray, Probe | None, DifficultyReport]:
    """How hard each prompt is.

    Args:
        rows: Features of n prompts.
        labels: Labels of some of them.
        plain: float [n], from `read_off`, for the methods that need no label.
        seen: Answers seen in an earlier training.
        config: Method and its settings.

    Returns:
        Difficulty float64 [n], the probe where one was learned and is used, and the report.
    """
    n = len(rows)
    if labels is None and config.method in LEARNED:
        score, report = _unknown(n, "no labels")
        probe = None
    elif config.method == "none":
        score, report = _unknown(n, "difficulty.method is none")
        probe = None
    elif plain is not None:
        score, report = _measure_plain(plain, labels, config)
        probe = None
    else:
        assert labels is not None
        score, probe, report = _learn(inputs(rows), labels, config)
    score = _correct(score, labels, seen, config.prior_strength)
    certain = labels.rows[np.isinf(labels.samples)] if labels is not None else []  # nothing corrects these
    observed = int((np.delete(seen.trials, certain) > 0).sum()) if seen is not None else 0
    return score, probe, DifficultyReport(**{**vars(report), "observed": observed})


def _unknown(n: int, why: str) -> tuple[np.ndarray, DifficultyReport]:
    return np.full(n, 0.5), DifficultyReport("none", False, f"{why}: all prompts without a label of their own count as "
                                             "equally hard", 0, None, None, None, None, None, 0, [])


def _measure_plain(plain: np.ndarray, labels: Labels | None,
                   config: DifficultyConfig) -> tuple[np.ndarray, DifficultyReport]:
    """A proxy without parameters: its rank among all prompts, put on the scale of the labels where there are any."""
    share = (rankdata(plain) - 0.5) / len(plain)
    if labels is None:
        return share, DifficultyReport(config.method, True, f"{config.method}; no labels to check it against", 0, None,
                                       None, None, None, None, 0, [])
    hard = 1 - labels.pass_rate
    slope, offset = np.polyfit(share[labels.rows], hard, 1)
    predicted = np.clip(offset + slope * share, 0, 1)
    used, report = _report(config, labels, predicted[labels.rows], share[labels.rows], None)
    return (predicted if used else np.full(len(plain), hard.mean())), report


def _learn(x: sp.csr_array, labels: Labels,
           config: DifficultyConfig) -> tuple[np.ndarray, Probe | None, DifficultyReport]:
    """A probe on the labelled rows. A labelled row's own score comes from a probe that has not seen it."""
    hard = 1 - labels.pass_rate
    at_most = spaced(np.arange(len(hard)), _MOST_LABELS)
    own = np.full(len(hard), np.nan)
    for fit_rows, held_out in folds(len(at_most), min(config.folds, len(at_most))):
        fit_rows, held_out = at_most[fit_rows], at_most[held_out]
        own[held_out] = fit(x[labels.rows[fit_rows]], hard[fit_rows], config).predict(x[labels.rows[held_out]])
    probe = fit(x[labels.rows[at_most]], hard[at_most], config)
    score = probe.predict(x).astype(np.float64)
    used, report = _report(config, Labels(*(part[at_most] for part in vars(labels).values())), own[at_most],
                           own[at_most], len(probe.columns))
    if not used:
        return np.full(len(score), hard.mean()), None, report
    score[labels.rows] = np.where(np.isnan(own), score[labels.rows], own)
    return score, probe, report


def folds(n: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit on, rows to predict), `count` times; shuffled, for rows may lie in an order that means something."""
    yield from KFold(count, shuffle=True, random_state=0).split(np.arange(n))


def fit(x: sp.csr_array, hard: np.ndarray, config: DifficultyConfig) -> Probe:
    """The learned proxy.

    Args:
        x: [m, d] of labelled prompts (`probes.inputs`).
        hard: float [m], 1 − pass rate.
        config: `method` is one of `LEARNED`.
    """
    if config.method == "ridge":
        return fit_ridge(x, hard, min_rows_per_feature=config.min_rows_per_feature)
    return fit_elastic_net(x, hard, l1_ratio=config.l1_ratio, folds=min(config.folds, len(hard)),
                           min_rows_per_feature=config.min_rows_per_feature)


def _report(config: DifficultyConfig, labels: Labels, predicted: np.ndarray, ranked_by: np.ndarray,
            features: int | None) -> tuple[bool, DifficultyReport]:
    """The gate: is the proxy used, and what is it worth?"""
    hard = 1 - labels.pass_rate
    if np.ptp(hard) == 0:
        rate = float(labels.pass_rate[0])
        why = f"all {len(hard)} labelled prompts have a pass rate of {rate:.0%}: there is nothing to learn from"
        if rate == 0:
            why += "; do data.instruction, policy.verifier and policy.max_response_tokens fit how the policy answers?"
        return False, DifficultyReport(config.method, False, why, len(hard), round(rate, 6), None, None, None, features,
                                       0, [])
    rho = spearman(ranked_by, hard)
    low, high = bootstrap_interval(lambda i: spearman(ranked_by[i], hard[i]), len(hard))
    used = low > 0
    why = f"held-out Spearman {rho:.2f} (95% interval {low:.2f} to {high:.2f})"
    if not used:
        why += " does not beat chance: all prompts without a label of their own count as equally hard"
    shown = spaced(np.arange(len(hard)), _HELD_OUT_SHOWN)
    return used, DifficultyReport(
        method=config.method, used=used, why=why, labels=len(hard),
        mean_pass_rate=round(float(labels.pass_rate.mean()), 6), spearman=round(rho, 6), spearman_low=round(low, 6),
        spearman_high=round(high, 6), features=features, observed=0,
        held_out=[(round(float(predicted[i]), 4), round(float(hard[i]), 4)) for i in shown],
    )


def _correct(score: np.ndarray, labels: Labels | None, seen: Seen | None, strength: float) -> np.ndarray:
    """Predictions, corrected by each prompt's own answers."""
    n = len(score)
    successes, trials = (seen.successes.copy(), seen.trials.copy()) if seen is not None else (np.zeros(n), np.zeros(n))
    exact = np.full(n, np.nan)
    if labels is not None:
        counted = np.isfinite(labels.samples)
        rows, rate, samples = labels.rows[counted], labels.pass_rate[counted], labels.samples[counted]
        successes[rows] += rate * samples
        trials[rows] += samples
        exact[labels.rows[~counted]] = labels.pass_rate[~counted]
    believed = posterior_mean(np.clip(1 - score, 0, 1), successes, trials, strength)
    return 1 - np.where(np.isnan(exact), believed, exact)
