"""A GRPO run, finished or still running: what it won, step by step, and whether the optimiser stayed calm.

Whatever metric a run does not have is left out. The step numbers are the trainer's, so step k saw batch k of the
manifest; where the manifest's predicted difficulty is at hand, the page sets it beside the reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_core.report import markdown, observed
from saerl_core.report.markup import count, percent, shorten, signed, svg
from saerl_core.report.markup import render as fill

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure


_SERIES = {
    "response_length_mean": "Mean response length (tokens)",
    "response_clipped_share": "Share of answers cut at the limit",
    "entropy": "Entropy",
    "ppo_kl": "KL to the sampling policy",
    "kl": "KL to the initial policy",
    "clipfrac": "Share of clipped tokens",
    "grad_norm": "Gradient norm",
    "pg_loss": "Policy loss",
    "rollout_log_prob_gap": "Gap of probabilities, rollout to trainer",
    "lr": "Learning rate",
    "seconds": "Seconds per step",
}
"""Columns, and what they are called here."""
_SHARES = {"response_clipped_share", "clipfrac"}
_MODES = {"sampled": "sampled at T = 1", "greedy": "greedy"}


@dataclass(frozen=True)
class _Accuracy:
    mode: str
    before: float | None
    after: float | None
    gain: tuple[float, float, float] | None
    """difference, low, high"""

    @property
    def points(self) -> str:
        """`+13.9 (+12.1 to +15.7)`."""
        if self.gain is None:
            change = None if self.before is None or self.after is None else self.after - self.before
            return "–" if change is None else signed(100 * change, 1)
        difference, low, high = (signed(100 * value, 1) for value in self.gain)
        return f"{difference} ({low} to {high})"

    @property
    def gained(self) -> str:
        """`+13.9 points (95% interval +12.1 to +15.7)`."""
        return self.points.replace(" (", " points (95% interval ") if self.gain else f"{self.points} points"


def training_page(metrics: pl.DataFrame, result: Mapping[str, Any], difficulty: Sequence[float] | None = None,
                  rewards: pl.DataFrame | None = None) -> str:
    """The run as one HTML page.

    Args:
        metrics: A row a step; columns as far as they are known. Of a step that was run twice (after a resume) the
            last row counts.
        result: `manifest`, `steps`, `accuracy_before`, `accuracy_after`, `gain`, as far as they are known.
        difficulty: Mean predicted difficulty of each batch, where it is known.
        rewards: Columns `key`, `step`, `difficulty`, `successes`, `trials`: how each prompt of each step fared
            (`rl.consumed.observed_rewards`) and was predicted to; None where that was not recorded.
    """
    from saerl_core.report.figures.training import accuracy_gain

    steps = _steps(metrics)
    accuracy = _accuracy(result)
    gains = {row.mode: row.gain for row in accuracy if row.gain is not None}
    main = _reward_figure(steps, difficulty)
    return fill(
        "training.html.jinja",
        manifest=shorten(str(result.get("manifest") or ""), 80),
        warnings=_warnings(steps),
        lead=_lead(steps, result, accuracy),
        figures=_headline(steps, result),
        accuracy=[{"mode": row.mode, "before": _share(row.before), "after": _share(row.after), "points": row.points}
                  for row in accuracy],
        gains=svg(accuracy_gain(gains), "Gain with 95% interval") if gains else "",
        reward=svg(main, "Reward and held-out accuracy by step") if main is not None else "",
        with_difficulty=difficulty is not None,
        foresight=observed.section(rewards, _column(steps, "pg_loss"), _of_steps(steps, difficulty)),
        panels=[svg(fig, title) for title, fig in _panels(steps)],
        steps=steps.height,
    )


def training_markdown(metrics: pl.DataFrame, result: Mapping[str, Any],
                      difficulty: Sequence[float] | None = None, rewards: pl.DataFrame | None = None) -> str:
    """The run in short, with inline pictures; arguments as for `training_page`."""
    from saerl_core.report.figures.training import accuracy_gain

    steps, accuracy = _steps(metrics), _accuracy(result)
    rows = [(f"accuracy, {row.mode}", f"{_share(row.before)} → {_share(row.after)}, {row.gained}") for row in accuracy]
    rows += [*_headline(steps, result), *observed.fact(rewards)]
    if result.get("manifest"):
        rows.append(("manifest", str(result["manifest"])))
    main = _reward_figure(steps, difficulty)
    pictures = [("Reward and held-out accuracy by step", main)] if main is not None else []
    gains = {row.mode: row.gain for row in accuracy if row.gain is not None}
    if gains:
        pictures.append(("Gain in accuracy with 95% interval", accuracy_gain(gains)))
    return markdown.assemble("GRPO training", _lead(steps, result, accuracy), _warnings(steps), rows, pictures)


def _steps(metrics: pl.DataFrame) -> pl.DataFrame:
    """One row a step, ascending."""
    if "step" not in metrics.columns:
        return metrics.clear()
    return metrics.drop_nulls("step").unique("step", keep="last", maintain_order=True).sort("step")


def _column(steps: pl.DataFrame, name: str) -> np.ndarray | None:
    """float [n], NaN where unknown; None where there is no such column, or nothing in it."""
    if name not in steps.columns:
        return None
    values = steps[name].cast(float).fill_null(float("nan")).to_numpy()
    return values if np.isfinite(values).any() else None


def _of_steps(steps: pl.DataFrame, difficulty: Sequence[float] | None) -> np.ndarray | None:
    """float [steps], mean predicted difficulty of each step's batch, NaN where unknown; None where all are."""
    if difficulty is None or not steps.height:
        return None
    step, of_batch = steps["step"].to_numpy(), np.asarray(difficulty, dtype=float)
    known = (step >= 1) & (step <= len(of_batch))  # step 0 is a validation before the first update
    of_step = np.where(known, of_batch[np.clip(step - 1, 0, len(of_batch) - 1)], np.nan)
    return of_step if np.isfinite(of_step).any() else None


def _reward_figure(steps: pl.DataFrame, difficulty: Sequence[float] | None) -> Figure | None:
    from saerl_core.report.figures.training import reward

    mean, accuracy = _column(steps, "reward_mean"), _column(steps, "heldout_accuracy")
    if mean is None and accuracy is None:
        return None
    step = steps["step"].to_numpy()
    unknown = np.full(len(step), np.nan)
    return reward(step, unknown if mean is None else mean, unknown if accuracy is None else accuracy,
                  _of_steps(steps, difficulty))


def _panels(steps: pl.DataFrame) -> list[tuple[str, Figure]]:
    from saerl_core.report.figures.training import step_series

    made = []
    for name, title in _SERIES.items():
        values = _column(steps, name)
        if values is not None:
            fig = step_series(steps["step"].to_numpy(), values, title, as_percent=name in _SHARES, smooth=name != "lr")
            made.append((title, fig))
    return made


def _accuracy(result: Mapping[str, Any]) -> list[_Accuracy]:
    before, after, gain = (result.get(name) or {} for name in ("accuracy_before", "accuracy_after", "gain"))
    modes = [mode for mode in _MODES if mode in before or mode in after or mode in gain]
    return [_Accuracy(_MODES[mode], before.get(mode), after.get(mode), _interval(gain.get(mode))) for mode in modes]


def _interval(gain: Mapping[str, float] | None) -> tuple[float, float, float] | None:
    return None if not gain else (gain["difference"], gain["low"], gain["high"])


def _lead(steps: pl.DataFrame, result: Mapping[str, Any], accuracy: Sequence[_Accuracy]) -> str:
    measured = [row for row in accuracy if row.before is not None and row.after is not None]
    if measured:
        first = measured[0]
        sentence = (f"Held-out accuracy ({first.mode}) went from {_share(first.before)} to {_share(first.after)}: "
                    f"{first.gained}.")
        if first.gain and first.gain[1] <= 0 <= first.gain[2]:
            sentence += " The interval holds zero, so this may be chance."
        return sentence
    if not steps.height:
        return "No step has finished yet."
    reward = _column(steps, "reward_mean")
    done, planned = int(steps["step"].max()), result.get("steps")  # type: ignore[arg-type]  # int: the column is
    sentence = f"{count(done, 'step')} done" + (f" of {count(planned)}." if planned else ".")
    if reward is not None:
        known = reward[np.isfinite(reward)]
        fifth = max(1, len(known) // 5)
        sentence += (f" Mean reward went from {known[:fifth].mean():.2f} in the first fifth to "
                     f"{known[-fifth:].mean():.2f} in the last.")
    return sentence


def _headline(steps: pl.DataFrame, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = []
    done, planned = (int(steps["step"].max()) if steps.height else 0), result.get("steps")  # type: ignore[arg-type]
    figures.append(("steps", f"{count(done)} / {count(planned)}" if planned else count(done)))
    reward = _column(steps, "reward_mean")
    if reward is not None:
        known = reward[np.isfinite(reward)]
        figures += [("reward, first step", f"{known[0]:.2f}"), ("reward, last step", f"{known[-1]:.2f}")]
    seconds = _column(steps, "seconds")
    if seconds is not None:
        figures += [("seconds a step", f"{np.nanmean(seconds):.1f}"), ("in all", _duration(float(np.nansum(seconds))))]
    return figures


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _warnings(steps: pl.DataFrame) -> list[str]:
    """Metrics that stopped being numbers."""
    found = []
    for column in ("reward_mean", "heldout_accuracy", *_SERIES):
        if column in steps.columns:
            wrong = steps.filter(~steps[column].cast(float).is_finite().fill_null(True))["step"].to_list()
            if wrong:
                found.append(f"{column} is not a finite number in {count(len(wrong), 'step')}, first in step "
                             f"{wrong[0]}.")
    return found


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)
