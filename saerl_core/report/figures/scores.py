"""Difficulty and quality: what the probes predict, and whether it holds on prompts that they have not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saerl_core.report.calibration import Bin
from saerl_core.report.canvas import HALF, blank, drawn, mark, pair_of_histograms
from saerl_core.report.palette import LIGHT

DRAWN_DOTS = 1500
"""More dots than this are thinned: they would hide each other and swell the page."""


@drawn
def held_out_difficulty(held_out: Sequence[tuple[float, float]]) -> Figure:
    """Predicted against measured difficulty of labelled prompts that the proxy had not seen.

    Args:
        held_out: (predicted, measured), one a prompt; at least one.
    """
    predicted, measured = np.asarray(held_out, dtype=np.float64).T
    order = np.argsort(predicted, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(len(order), DRAWN_DOTS)).round().astype(int)]
    fig = blank(HALF, 320)
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color=LIGHT["grey"], linewidth=1, linestyle=(0, (3, 3)))
    ax.scatter(predicted[shown], measured[shown], s=15, color=LIGHT["blue"], alpha=0.38, linewidths=0)
    ax.set(title="Held-out prompts, one by one", xlabel="predicted difficulty",
           ylabel="measured difficulty (1 − pass rate)", xlim=(-0.03, 1.03), ylim=(-0.05, 1.05))
    return fig


@drawn
def reliability(bins: Sequence[Bin], xlabel: str, ylabel: str) -> Figure:
    """What was measured where this much was predicted, with 95% intervals; below, on how many prompts each rests.

    Args:
        bins: See `calibration.bins`.
        xlabel: What is predicted.
        ylabel: What is measured.
    """
    fig = blank(HALF, 320)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    x = [found.predicted for found in bins]
    mean = np.array([found.measured for found in bins])
    reach = np.abs(np.array([(found.low, found.high) for found in bins]).T - mean)
    top.plot([0, 1], [0, 1], color=LIGHT["grey"], linewidth=1, linestyle=(0, (3, 3)))
    top.errorbar(x, mean, yerr=reach, color=LIGHT["orange"], marker="o", markersize=4.5, linewidth=1.4, elinewidth=1.2)
    top.set(title="Calibration on held-out prompts", ylabel=ylabel, xlim=(-0.03, 1.03), ylim=(-0.05, 1.05))
    middle = [(found.start + found.end) / 2 for found in bins]
    bars = bottom.bar(middle, [found.count for found in bins], width=0.09, color=LIGHT["grey"], linewidth=0)
    bottom.bar_label(bars, fontsize=8.5, color=LIGHT["soft"], padding=1)
    bottom.set(xlabel=xlabel, ylabel="prompts", yticks=[])
    bottom.margins(y=0.45)
    fig.align_ylabels()
    return fig


@drawn
def predicted_difficulty(trained: np.ndarray, left_out: np.ndarray) -> Figure:
    """Difficulty of the prompts that are trained on, and of those that are not: predicted, corrected by evidence."""
    fig = blank(HALF, 320)
    pair_of_histograms(fig, trained, left_out, ("trained on", "left out"), "Difficulty of all prompts",
                        "difficulty", (LIGHT["blue"], LIGHT["orange"]))
    return fig


@drawn
def difficulty_by_level(level: np.ndarray, difficulty: np.ndarray) -> Figure:
    """Difficulty at each level that the data set itself names: median, quartiles, 5% and 95%."""
    levels = np.unique(level)
    fig = blank(HALF, 280)
    ax = fig.subplots()
    for x, name in enumerate(levels):
        ends = np.quantile(difficulty[level == name], [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([x, x], ends[[0, 4]], color=LIGHT["blue"], linewidth=1)
        ax.plot([x, x], ends[[1, 3]], color=LIGHT["blue"], linewidth=9, alpha=0.45, solid_capstyle="butt")
        ax.plot([x - 0.16, x + 0.16], ends[[2, 2]], color=LIGHT["blue"], linewidth=2.2)
    ax.set_xticks(range(len(levels)), [f"{name:g}" for name in levels])
    ax.set(title="Against the data set's own levels", xlabel="level", ylabel="difficulty",
           xlim=(-0.6, len(levels) - 0.4))
    return fig


@drawn
def held_out_quality(intact: np.ndarray, damaged: np.ndarray, threshold: float | None) -> Figure:
    """Scores of held-out intact prompts and of damaged copies."""
    fig = blank(HALF, 300)
    ax = pair_of_histograms(fig, intact, damaged, ("intact", "damaged on purpose"), "Held-out prompts",
                             "quality score", (LIGHT["blue"], LIGHT["orange"]))
    mark(ax, threshold)
    return fig


@drawn
def keys(own: np.ndarray, wrong: np.ndarray, by: str) -> Figure:
    """What speaks for the prompts' own keys, and for keys that were made wrong.

    Args:
        own: Agreement in [-1, 1], or an answer's likelihood per token.
        wrong: The same of the wrong keys.
        by: `quality.suspect_by`.
    """
    fig = blank(HALF, 300)
    span, xlabel = ((-1.0, 1.0), "agreement with similar prompts") if by == "agreement" else (
        (0.0, 1.0), "likelihood per token of the answer")
    pair_of_histograms(fig, own, wrong, ("own keys", "made wrong"), "Answer keys", xlabel,
                       (LIGHT["blue"], LIGHT["orange"]), span)
    return fig


@drawn
def quality_of_prompts(scores: np.ndarray, threshold: float | None) -> Figure:
    """Scores of the data set's own prompts."""
    fig = blank(HALF, 300)
    ax = fig.subplots()
    ax.hist(scores, bins=np.linspace(0, 1, 41).tolist(), color=LIGHT["blue"], alpha=0.6, histtype="stepfilled",
            linewidth=0)
    ax.set(title="Prompts of this data set", xlabel="quality score", ylabel="prompts", xlim=(0, 1))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    mark(ax, threshold)
    return fig
