"""Means and intervals over seeds.

Seeds are few, so intervals are Student's t over them; a pair is the same seed in two arms, which shares the order of
the random numbers and the held-out problems, so differences are taken seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from saerl_core.compare.result import Estimate, Reach

_DRAWS = 4000


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval (Student's t) of one figure over seeds."""
    found = np.asarray(values, dtype=float)
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean=mean, low=None, high=None, seeds=len(found))
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return Estimate(mean=mean, low=mean - half, high=mean + half, seeds=len(found))


def gain(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Mean of ours − baseline over the seeds that both have; None if there are none.

    Args:
        ours: Seed → figure.
        baseline: The same of the baseline.
    """
    pairs = [ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())]
    return estimate(pairs) if pairs else None


def area(steps: Sequence[int], accuracy: Sequence[float]) -> float:
    """Area under a curve over its length: the mean accuracy while training (trapezoids)."""
    return float(np.trapezoid(accuracy, steps) / (steps[-1] - steps[0]))


def first_reach(steps: np.ndarray, accuracy: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Where each of n curves first reaches its target, in steps, interpolated; infinite where it never does.

    Args:
        steps: float [k], ascending.
        accuracy: float [n, k].
        target: float [n].
    """
    above = accuracy >= target[:, None]
    place = above.argmax(axis=1)
    rows = np.arange(len(accuracy))
    before = np.maximum(place - 1, 0)
    low, high = accuracy[rows, before], accuracy[rows, place]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(place > 0, (target - low) / (high - low), 0.0)
    found = steps[before] + part * (steps[place] - steps[before])
    return np.where(above.any(axis=1), found, np.inf)


def reach(steps: Sequence[int], ours: np.ndarray, baseline: np.ndarray, *, paired: bool = True,
          curation_steps: float = 0.0, baseline_curation_steps: float = 0.0, seed: int = 0) -> Reach:
    """When the mean of our curves reaches the final accuracy of the baseline's mean curve, and after what share of the
    steps that the baseline itself took to reach it.

    The interval is a bootstrap over seeds: seeds of both sides are drawn anew, and with them the target. With few seeds
    it is too narrow rather than too wide. There is no share where the baseline needs no steps: it ends no better than
    it began.

    Args:
        steps: k evaluations.
        ours: float [seeds, k], sampled accuracy.
        baseline: float [seeds of its own, k]; with `paired`, row for row the same seeds.
        paired: Whether they are pairs, which are then drawn together.
        curation_steps: What our curation costs, in steps of the baseline.
        baseline_curation_steps: The same of the baseline.
        seed: Of the bootstrap.
    """
    at = np.asarray(steps, dtype=float)

    def both(us: np.ndarray, them: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        target = them[:, -1]
        return first_reach(at, us, target), first_reach(at, them, target)

    step, theirs = (float(found[0]) for found in both(ours.mean(axis=0)[None], baseline.mean(axis=0)[None]))
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(ours), (_DRAWS, len(ours)))
    others = rows if paired else rng.integers(0, len(baseline), (_DRAWS, len(baseline)))
    drawn, drawn_theirs = both(ours[rows].mean(axis=1), baseline[others].mean(axis=1))
    few = len(ours) < 2 or len(baseline) < 2
    low, high = (None, None) if few else _interval(drawn)
    shares = np.divide(drawn, drawn_theirs, out=np.full(_DRAWS, np.inf), where=drawn_theirs > 0)
    share_low, share_high = (None, None) if few else _interval(shares)
    reached, comparable = np.isfinite(step), np.isfinite(step) and theirs > 0
    return Reach(
        step=step if reached else None, low=low, high=high,
        share=step / theirs if comparable else None, share_low=share_low, share_high=share_high,
        flops_share=(step + curation_steps) / (theirs + baseline_curation_steps) if comparable else None,
    )


def _interval(drawn: np.ndarray) -> tuple[float | None, float | None]:
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return (float(low) if np.isfinite(low) else None, float(high) if np.isfinite(high) else None)
