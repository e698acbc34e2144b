"""A training, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from saerl_core.report.calibration import Bin
from saerl_core.report.canvas import HALF, WIDE, blank, drawn
from saerl_core.report.palette import LIGHT


@drawn
def reward(step: np.ndarray, mean: np.ndarray, accuracy: np.ndarray, difficulty: np.ndarray | None) -> Figure:
    """Reward of each step and held-out accuracy; below, how hard the step's batch was predicted to be.

    Args:
        step: int [n].
        mean: float [n], mean reward; NaN where it is not known.
        accuracy: float [n], held-out accuracy; NaN where it was not measured.
        difficulty: float [n], mean predicted difficulty of the batch; NaN where unknown. None: no second panel.
    """
    fig = blank(WIDE, 400 if difficulty is not None else 300)
    axes = np.atleast_1d(fig.subplots(1 if difficulty is None else 2, 1, sharex=True,
                                      height_ratios=(1,) if difficulty is None else (3, 1.2)))
    top = axes[0]
    if np.isfinite(mean).any():
        _raw_and_smooth(top, step, mean, "mean reward")
    measured = np.isfinite(accuracy)
    if measured.any():
        top.plot(step[measured], accuracy[measured], color=LIGHT["orange"], marker="o", markersize=5,
                 label="held-out accuracy")
    top.set(title="Reward and held-out accuracy" if measured.any() else "Reward")
    top.grid(axis="y")
    top.legend(loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    top.margins(y=0.18)
    if difficulty is not None:
        axes[1].plot(step, difficulty, color=LIGHT["soft"])
        axes[1].set(title="Mean predicted difficulty of the batch")
        axes[1].grid(axis="y")
        axes[1].yaxis.set_major_locator(MaxNLocator(3))
    for ax in axes:
        ax.margins(x=0.01)
    axes[-1].set(xlabel="step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    return fig


@drawn
def step_series(step: np.ndarray, value: np.ndarray, title: str, *, as_percent: bool = False,
                smooth: bool = True) -> Figure:
    """One figure of the training, step by step; with its moving mean, where it is noisy."""
    fig = blank(HALF, 190)
    ax = fig.subplots()
    _raw_and_smooth(ax, step, value, "", smooth)
    ax.set(title=title)
    ax.grid(axis="y")
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    if as_percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        # 1e-06 rather than a multiplier that hovers over the axis
        ax.yaxis.set_major_formatter(lambda number, _: f"{number:g}".replace("-", "−"))
    return fig


@drawn
def observed(bins: Sequence[Bin]) -> Figure:
    """Mean reward of the answers to prompts that were predicted this hard, with 95% intervals.

    Args:
        bins: Predicted difficulty against mean reward (`calibration.bins`).
    """
    fig = blank(HALF, 300)
    ax = fig.subplots()
    mean = np.array([found.measured for found in bins])
    reach = np.abs(np.array([(found.low, found.high) for found in bins]).T - mean)
    ax.plot([0, 1], [1, 0], color=LIGHT["grey"], linewidth=1, linestyle=(0, (3, 3)))
    ax.errorbar([found.predicted for found in bins], mean, yerr=reach, color=LIGHT["orange"], marker="o",
                markersize=4.5, linewidth=1.4, elinewidth=1.2)
    ax.set(title="Reward in training, by predicted difficulty", xlabel="predicted difficulty", ylabel="mean reward",
           xlim=(-0.03, 1.03), ylim=(-0.05, 1.05))
    return fig


@drawn
def against(x: np.ndarray, y: np.ndarray, title: str, xlabel: str, ylabel: str) -> Figure:
    """One figure of each step against another."""
    fig = blank(HALF, 300)
    ax = fig.subplots()
    ax.scatter(x, y, s=18, color=LIGHT["blue"], alpha=0.55, linewidths=0)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.grid(axis="y")
    ax.margins(0.05)
    return fig


@drawn
def accuracy_gain(gains: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Gains in accuracy with their intervals, against zero.

    Args:
        gains: name → (difference, low, high), as shares.
    """
    fig = blank(HALF, 60 + 44 * len(gains))
    ax = fig.subplots()
    for y, (difference, low, high) in enumerate(gains.values()):
        ax.plot([100 * low, 100 * high], [y, y], color=LIGHT["blue"], linewidth=6, alpha=0.4, solid_capstyle="butt")
        ax.plot(100 * difference, y, marker="o", markersize=6, color=LIGHT["blue"])
    ax.axvline(0, color=LIGHT["grey"], linewidth=1, linestyle=(0, (3, 3)))
    ax.set_yticks(range(len(gains)), list(gains))
    ax.set(title="Gain with 95% interval", xlabel="percentage points", ylim=(len(gains) - 0.4, -0.6))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return fig


def _raw_and_smooth(ax: Axes, step: np.ndarray, value: np.ndarray, name: str, smooth: bool = True) -> None:
    """The values as they are, faint, and their centred moving mean, which never looks past the ends."""
    known = np.isfinite(value)
    step, value = step[known], value[known]
    half = min(len(value) // 40, 15) if smooth else 0
    if half == 0:
        ax.plot(step, value, color=LIGHT["blue"], marker="o" if len(value) < 3 else None, markersize=4, label=name)
        return
    ax.plot(step, value, color=LIGHT["blue"], linewidth=0.9, alpha=0.4, label=name)
    around = [slice(max(0, i - half), i + half + 1) for i in range(len(value))]
    ax.plot(step, [value[part].mean() for part in around], color=LIGHT["blue"], linewidth=2,
            label=f"{name}, mean of {2 * half + 1} steps" if name else "")
