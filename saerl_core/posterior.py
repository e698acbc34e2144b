"""What a prompt's pass rate is believed to be: the proxy's prediction, corrected by answers that were seen.

The pass rate has a Beta prior of mean p (the prediction) that weighs as much as `strength` answers; n answers, s of
them right, make it Beta(strength·p + s, strength·(1 − p) + n − s). Answers of an older policy count for less: one that
is `age` steps old counts `decay**age`. (MoPPS, arXiv 2507.04632, tracks prompts by such a discounted Beta posterior.)
"""

from __future__ import annotations

import numpy as np
import polars as pl

_ROUNDING = 1e-9  # of discounted sums


def posterior_mean(prior: np.ndarray, successes: np.ndarray, trials: np.ndarray, strength: float) -> np.ndarray:
    """Mean of the Beta posterior of each prompt's pass rate.

    Args:
        prior: float [n] in [0, 1], predicted pass rates.
        successes: float [n], sum of the rewards seen, at most `trials`.
        trials: float [n], answers seen; 0 leaves the prior as it is. Discounted counts need not be whole.
        strength: Answers that the prior is worth, above 0.

    Returns:
        float [n] in [0, 1].

    Raises:
        ValueError: a count or rate outside its bounds.
    """
    _check(prior, successes, trials, strength)
    return (strength * prior + successes) / (strength + trials)


def discount(observed: pl.DataFrame, decay: float) -> pl.DataFrame:
    """Observations of many steps → one line a prompt, older ones counting for less.

    Args:
        observed: Columns `key`, `step`, `successes`, `trials` (`rl.consumed.observed_rewards`).
        decay: Weight of an answer that is one step older than the last step, in (0, 1]; 1 forgets nothing.

    Returns:
        Columns `key`, `successes`, `trials` (float), in the order of the keys.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay = {decay}: expected a number in (0, 1]")
    weight = pl.lit(decay).pow(pl.col("step").max() - pl.col("step"))
    weighted = observed.select("key", pl.col("successes") * weight, pl.col("trials") * weight)
    return weighted.group_by("key", maintain_order=True).agg(pl.col("successes", "trials").sum()).sort("key")


def _check(prior: np.ndarray, successes: np.ndarray, trials: np.ndarray, strength: float) -> None:
    if not strength > 0:
        raise ValueError(f"strength = {strength}: expected a number above 0")
    if not np.all((prior >= 0) & (prior <= 1)):
        raise ValueError("a prior outside [0, 1]")
    if not np.all((successes >= 0) & (successes <= trials + _ROUNDING)):
        raise ValueError("successes are not between 0 and trials")
