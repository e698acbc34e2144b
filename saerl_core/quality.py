"""Quality in [0, 1], higher = better: a probe that tells good prompts from bad ones.

What is bad is said by damaged copies that the stage makes itself, by a column of the data, or by rollouts (a prompt
that was never solved). The probe must earn its place: it is fitted on some prompts and measured on others; where it
does not beat chance there, or where it merely memorises, nothing is filtered and the report says so.

Damaged copies have a trap: the prompts that they are set against pass for good, and some are damaged in truth, which is
why they are wanted. A probe that is fitted on those learns to like them. So what looks like damage to a probe that was
fitted on *other* prompts is set aside before the last fit (pruning by cross-validated predictions: Northcutt et al.
2021, "Confident Learning").

What it can see is text. It cannot see a wrong answer key: that is not in the prompt. For that there is what the key
would teach, or its likelihood (`suspicion`), with a gate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from saerl_core.config import QualityConfig
from saerl_core.labels import draw
from saerl_core.probes import Probe, auc, bootstrap_interval, fit_logistic, fit_mlp, fit_ridge, spaced

VERSION = 5
_HELD_OUT_SHARE = 0.3
_FOLDS = 5
_LOOKS_BAD = 0.5
_HELD_OUT_SHOWN = 2000
INTACT = "intact"


@dataclass(frozen=True)
class Examples:
    """m prompts that are known to be good or bad."""

    x: sp.csr_array
    """[m, d], `probes.inputs`"""
    good: np.ndarray
    """bool [m]"""
    group: np.ndarray
    """int [m]: a prompt and its copies share a number, and so a side of the split"""
    kind: np.ndarray
    """str [m]: kind of damage, `intact` where there is none"""


@dataclass(frozen=True)
class QualityReport:
    """What the probe is worth on prompts that it has not seen, in no version."""

    method: str
    labels: str
    used: bool
    why: str
    good: int
    bad: int
    auc: float | None
    """held out, good against bad"""
    auc_low: float | None
    auc_high: float | None
    auc_train: float | None
    set_aside: int
    """own prompts that looked like damage to a probe fitted on others, and were not learned from as good ones"""
    auc_by_kind: dict[str, float]
    """held out, each kind of damage against its own originals"""
    threshold: float | None
    """prompts that score lower are dropped: `quality.threshold`, or less, so that few good ones go with the bad"""
    held_out: list[tuple[float, str]]
    """(score, `intact` or kind of damage), at most 2,000 of them"""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def unused(config: QualityConfig, why: str) -> QualityReport:
    """The report of a run in which no probe is fitted."""
    return QualityReport(config.method, config.labels, False, why, 0, 0, None, None, None, None, 0, {}, None, [])


def by_lot(keys: Sequence[str], config: QualityConfig) -> tuple[np.ndarray, QualityReport]:
    """A control: scores that know nothing.

    Args:
        keys: n row keys. A prompt's score depends on its key and the seed alone.
        config: `seed` and `drop_share`.

    Returns:
        float64 [n], uniform in [0, 1], and the report, which says so.
    """
    lots = [draw(f"quality/{key}", config.seed) for key in keys]  # not those by which prompts are chosen to be labelled
    scores = np.array(lots, dtype=np.float64) / 2**64
    why = f"a control, not a probe: scores are drawn by lot, and quality.drop_share ({config.drop_share}) of them go"
    return scores, replace(unused(config, why), labels="none", used=True)


def fit(examples: Examples, config: QualityConfig) -> tuple[Probe | None, QualityReport]:
    """Fit the probe on most groups, measure it on the rest.

    Args:
        examples: Known prompts, both classes among them.
        config: Method, gate, and whether what is known is permuted first.

    Returns:
        The probe that was measured (None where the gate is closed), and its report.
    """
    good, bad = int(examples.good.sum()), int((~examples.good).sum())
    if min(good, bad) < 10:
        return None, unused(config, f"{good} good and {bad} bad prompts are known: too few to learn from")
    if config.shuffle_labels:
        order = np.random.default_rng([config.seed, 1]).permutation(len(examples.good))
        examples = replace(examples, good=examples.good[order], kind=examples.kind[order])
    held_out_groups = _held_out(examples, config.seed)
    held_out = np.isin(examples.group, held_out_groups)
    learned = np.flatnonzero(~held_out)
    doubted = _doubted(examples, learned, config) if config.labels == "corruptions" else learned[:0]
    learned = np.setdiff1d(learned, doubted)
    probe = _fit(examples.x[learned], examples.good[learned], config)
    scores = probe.predict(examples.x)

    def area(of: np.ndarray) -> float:
        return auc(scores[of], examples.good[of])

    rows_of = [np.flatnonzero(examples.group == number) for number in held_out_groups]
    tested, train_auc = area(held_out), area(~held_out)
    low, high = bootstrap_interval(lambda i: area(np.concatenate([rows_of[j] for j in i])), len(rows_of))
    by_kind = {str(kind): round(area(held_out & np.isin(examples.group, examples.group[examples.kind == kind])
                                     & np.isin(examples.kind, [kind, INTACT])), 6)
               for kind in np.unique(examples.kind) if kind != INTACT}
    figures = f"held-out AUC {tested:.3f} (95% interval {low:.3f} to {high:.3f}), training AUC {train_auc:.3f}"
    if low <= config.min_auc:
        used, why = False, f"{figures}: not above quality.min_auc = {config.min_auc}, so nothing is filtered"
    elif train_auc - tested > config.max_gap:
        used, why = False, f"{figures}: the probe memorises (quality.max_gap = {config.max_gap}), nothing is filtered"
    else:
        used, why = True, figures
    report = QualityReport(
        method=config.method, labels=config.labels, used=used, why=why, good=good, bad=bad, auc=round(tested, 6),
        auc_low=round(low, 6), auc_high=round(high, 6), auc_train=round(train_auc, 6), set_aside=len(doubted),
        auc_by_kind=by_kind,
        threshold=_threshold(scores[held_out & examples.good], config),
        held_out=[(round(float(scores[i]), 4), str(examples.kind[i]))
                  for i in spaced(np.flatnonzero(held_out), _HELD_OUT_SHOWN)],
    )
    return (probe if used else None), report


def _held_out(examples: Examples, seed: int) -> np.ndarray:
    """The groups to measure on, by lot: of the good ones and of the bad ones the same share."""
    rng = np.random.default_rng(seed)
    groups, first = np.unique(examples.group, return_index=True)
    good = examples.good[first]
    chosen = [rng.permutation(groups[good == which]) for which in np.unique(good)]
    return np.sort(np.concatenate([part[: round(len(part) * _HELD_OUT_SHARE)] for part in chosen]))


def _doubted(examples: Examples, rows: np.ndarray, config: QualityConfig) -> np.ndarray:
    """Those of `rows` that pass for good, but look bad to a probe fitted on other groups."""
    fold_of_group = np.random.default_rng([config.seed, 2]).integers(0, _FOLDS, int(examples.group.max()) + 1)
    fold = fold_of_group[examples.group[rows]]
    doubted: list[int] = []
    for number in range(_FOLDS):
        inside, outside = rows[fold == number], rows[fold != number]
        if len(np.unique(examples.good[outside])) == 2 and len(inside):
            score = _fit(examples.x[outside], examples.good[outside], config).predict(examples.x[inside])
            doubted += inside[examples.good[inside] & (score < _LOOKS_BAD)].tolist()
    return np.array(doubted, dtype=np.int64)


def _threshold(good: np.ndarray, config: QualityConfig) -> float:
    """`quality.threshold`, lowered where it would drop too many of the good held-out prompts."""
    bearable = float(np.quantile(good, config.max_good_dropped, method="lower"))
    return min(config.threshold, np.floor(bearable * 1e6) / 1e6)


def _fit(x: sp.csr_array, good: np.ndarray, config: QualityConfig) -> Probe:
    match config.method:
        case "ridge":
            return fit_ridge(x, good.astype(np.float64), seed=config.seed)
        case "mlp":
            return fit_mlp(x, good, hidden=config.hidden, seed=config.seed)
        case _:
            return fit_logistic(x, good)


def low_quality(scores: np.ndarray, threshold: float | None, config: QualityConfig) -> tuple[np.ndarray, str]:
    """Which prompts to drop, and a note where the cap on their share had to step in.

    Args:
        scores: float [n].
        threshold: The report's; of no account with `drop_share`.
        config: `drop_share` in place of the threshold, or `max_drop_share` as its cap.

    Returns:
        bool [n] and a note (empty where all is well).
    """
    share = config.max_drop_share if config.drop_share is None else config.drop_share
    most = int(len(scores) * share)
    worst = np.zeros(len(scores), dtype=bool)
    worst[np.argsort(scores, kind="stable")[:most]] = True
    if config.drop_share is not None:
        return worst, ""
    assert threshold is not None
    below = scores < threshold
    if below.sum() <= most:
        return below, ""
    return worst, (f"{int(below.sum())} prompts score below {threshold:.2f}; only the worst {most} are dropped "
                   f"(quality.max_drop_share = {config.max_drop_share}): does the probe fit this data set?")


@dataclass(frozen=True)
class SuspicionReport:
    """Whether what speaks against an answer key tells right ones from wrong ones that were made on purpose."""

    by: str
    used: bool
    why: str
    pairs: int
    """prompts whose key was also made wrong"""
    judged: int
    """prompts whose key could be judged"""
    looked_at: int
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    shown: list[tuple[float, float]]
    """what speaks against a prompt's own key and against its made one, of at most 2,000 prompts"""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def suspicion(right: Sequence[float] | np.ndarray, wrong: Sequence[float] | np.ndarray, judged: int, looked_at: int,
              config: QualityConfig) -> SuspicionReport:
    """The gate of `quality.suspect_answers`. Nothing is fitted, so every pair is held out.

    Args:
        right: What speaks against the keys of m prompts: the answer's negative log-likelihood per token, or how far the
            prompt disagrees with its like. The prompts' own keys pass for right ones.
        wrong: The same of a wrong key to each of these prompts.
        judged: Prompts for which there is such a figure.
        looked_at: Prompts for which there could have been.
        config: `min_auc`, and what the figure is.
    """
    doubt = np.stack([np.asarray(right, dtype=np.float64), np.asarray(wrong, dtype=np.float64)])
    about = {"by": config.suspect_by, "pairs": len(right), "judged": judged, "looked_at": looked_at,
             "shown": np.round(doubt.T[spaced(np.arange(len(right)), _HELD_OUT_SHOWN)], 4).tolist()}
    if len(right) < 20:
        return SuspicionReport(used=False, why=f"{len(right)} keys could be made wrong: too few to tell whether right "
                                               "ones are told from wrong ones", auc=None, auc_low=None, auc_high=None,
                               **about)

    def area(rows: np.ndarray) -> float:
        return auc(doubt[:, rows].ravel(), np.repeat([False, True], len(rows)))

    found = area(np.arange(len(right)))
    low, high = bootstrap_interval(area, len(right))
    used = low > config.min_auc
    why = f"AUC {found:.3f} (95% interval {low:.3f} to {high:.3f}) of own against made wrong keys"
    if not used:
        why += f": not above quality.min_auc = {config.min_auc}, so no answer is suspected"
    return SuspicionReport(used=used, why=why, auc=round(found, 6), auc_low=round(low, 6), auc_high=round(high, 6),
                           **about)
