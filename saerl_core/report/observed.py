"""Predicted difficulty against what a training saw: the reward of each prompt, the loss of each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from saerl_core.probes import bootstrap_interval, spearman
from saerl_core.report import calibration
from saerl_core.report.markup import count, interval, sentence, svg

_FEWEST = 10
"""A correlation of fewer points than this is not told."""


def section(rewards: pl.DataFrame | None, loss: np.ndarray | None, difficulty: np.ndarray | None) -> dict[str, Any]:
    """What `training.html.jinja` prints below `foresight`; `words` is empty where there is nothing to compare.

    Args:
        rewards: `key`, `step`, `difficulty`, `successes`, `trials`: a row for each prompt of each step.
        loss: float [steps], policy loss; None where it is not logged.
        difficulty: float [steps], mean predicted difficulty of each step's batch.
    """
    drawings, facts, words = [], [], ""
    if rewards is not None and rewards.height:
        prompts = _by_prompt(rewards)
        hard, reward = prompts["difficulty"].to_numpy(), prompts["reward"].to_numpy()
        words = _words(hard, reward)
        facts = [("prompts rewarded", count(len(hard))), ("difficulty and reward, prompts", _correlation(hard, reward)),
                 ("the same within a step, mean", _within_steps(rewards))]
        if len(hard) and reward.min() >= 0 and reward.max() <= 1:
            drawings.append(_reward_figure(hard, reward))
    if loss is not None and difficulty is not None:
        known = np.isfinite(loss) & np.isfinite(difficulty)
        if known.sum() >= _FEWEST and np.ptp(difficulty[known]) > 0:
            facts.append(("difficulty and loss, steps", _correlation(difficulty[known], loss[known])))
            drawings.append(_loss_figure(difficulty[known], loss[known]))
    return {"words": words, "drawings": drawings, "facts": facts}


def fact(rewards: pl.DataFrame | None) -> list[tuple[str, str]]:
    """The correlation alone, for the short form."""
    if rewards is None or not rewards.height:
        return []
    prompts = _by_prompt(rewards)
    return [("rank correlation, difficulty and reward",
             _correlation(prompts["difficulty"].to_numpy(), prompts["reward"].to_numpy()))]


def _by_prompt(rewards: pl.DataFrame) -> pl.DataFrame:
    """`difficulty` and mean `reward` of each prompt that got an answer, over all steps that trained on it."""
    return rewards.drop_nulls("difficulty").group_by("key", maintain_order=True).agg(
        pl.col("difficulty").first(), pl.col("successes").sum(), pl.col("trials").sum(),
    ).filter(pl.col("trials") > 0).with_columns(reward=pl.col("successes") / pl.col("trials"))


def _words(hard: np.ndarray, reward: np.ndarray) -> str:
    if len(hard) < _FEWEST:
        return "Too few prompts were rewarded to compare their difficulty with it."
    if np.ptp(hard) == 0:
        return "All prompts counted as equally hard, so there is nothing to compare with their reward."
    return sentence(f"rank correlation of predicted difficulty and mean reward: {_correlation(hard, reward)}. A good "
                    "prediction makes it strongly negative. The policy improves along the way, and where easy prompts "
                    "come first this hides part of it: within a step all prompts meet the same policy")


def _correlation(a: np.ndarray, b: np.ndarray) -> str:
    """Spearman's with its 95% bootstrap interval."""
    if len(a) < _FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return "–"
    return interval(spearman(a, b), *bootstrap_interval(lambda i: spearman(a[i], b[i]), len(a)))


def _within_steps(rewards: pl.DataFrame) -> str:
    """Mean over the steps of Spearman's between the prompts of one step; the interval is over the steps."""
    found = []
    for _, step in rewards.drop_nulls("difficulty").filter(pl.col("trials") > 0).group_by("step", maintain_order=True):
        hard, reward = step["difficulty"].to_numpy(), (step["successes"] / step["trials"]).to_numpy()
        if len(hard) > 2 and np.ptp(hard) > 0 and np.ptp(reward) > 0:
            found.append(spearman(hard, reward))
    if len(found) < _FEWEST:
        return "–"
    rho = np.array(found)
    return interval(float(rho.mean()), *bootstrap_interval(lambda i: float(rho[i].mean()), len(rho)))


def _reward_figure(hard: np.ndarray, reward: np.ndarray) -> Markup:
    from saerl_core.report.figures import training as figures

    return svg(figures.observed(calibration.bins(hard, reward)),
               "Mean reward in training of prompts in bins of predicted difficulty")


def _loss_figure(difficulty: np.ndarray, loss: np.ndarray) -> Markup:
    from saerl_core.report.figures import training as figures

    fig = figures.against(difficulty, loss, "Policy loss, by predicted difficulty", "mean predicted difficulty of the "
                          "batch", "policy loss of the step")
    return svg(fig, "Policy loss of each step against the mean predicted difficulty of its batch")
