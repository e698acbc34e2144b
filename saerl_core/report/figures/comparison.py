"""Arms side by side: their accuracy by step, what they gained, what they trained on. The baseline is always grey."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from saerl_core.compare.result import Arm, Batch, Curve, Estimate
from saerl_core.report.canvas import HALF, WIDE, blank, drawn
from saerl_core.report.palette import LIGHT

_FEW_COLOURS = ("#c2550f", "#009e73", "#cc79a7", "#b8ad1f")  # ours for orange, then Okabe and Ito's
TOGETHER = len(_FEW_COLOURS) + 2
"""Arms that one pair of axes can hold, the baseline and the main arm among them."""
_COLUMNS = 4
_FRONT = 4
"""Matplotlib's zorder of what nothing hides."""
_POINTS = 40
"""A series of a training is drawn with at most so many points, each the mean of the steps around it."""
_COMPOSITION = {
    "level": "level",
    "difficulty": "predicted difficulty",
    "reward": "reward",
    "spread": "prompts with\nan advantage",
    "clusters": "clusters a batch",
}
"""Fields of `Batch`, and what they are called here."""


def arm_colours(names: Sequence[str], baseline: str, main: str) -> dict[str, str]:
    """A colour for each arm: grey for the baseline, blue for the main arm. The others have one each while there are
    few of them; more share one, for then they are never drawn on the same axes."""
    others = [name for name in names if name not in (baseline, main)]
    few = len(others) <= len(_FEW_COLOURS)
    return {main: LIGHT["blue"], baseline: LIGHT["grey"]} | {
        name: _FEW_COLOURS[i] if few else LIGHT["orange"] for i, name in enumerate(others)}


@drawn
def accuracy(curves: Mapping[str, Curve], colours: Mapping[str, str], target: float, reached: Mapping[str, float]
             ) -> Figure:
    """Accuracy of sampled answers at each evaluation, with 95% intervals over seeds.

    Args:
        curves: By arm, the main one first: it is in front.
        colours: By arm.
        target: What is to be reached: a dashed line.
        reached: Arm → step at which its mean gets there, for those that do: a dot.
    """
    fig = blank(WIDE, 340)
    ax = fig.subplots()
    ax.axhline(target, color=LIGHT["grey"], linewidth=1, linestyle=(0, (4, 3)))
    _lines(ax, {name: (curve.steps, curve.sampled) for name, curve in curves.items()}, colours)
    for place, (name, step) in enumerate(reached.items()):
        ax.plot(step, target, marker="o", markersize=7, color=colours[name], markeredgecolor=LIGHT["paper"],
                zorder=_FRONT - place / 100)
    _by_step(ax, "Accuracy of sampled answers", "step", many=10)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(loc="upper left", frameon=True, facecolor=LIGHT["paper"], edgecolor="none")
    return fig


@drawn
def greedy_accuracy(curves: Mapping[str, Curve], colours: Mapping[str, str]) -> Figure:
    """Accuracy of greedy answers at each evaluation; arguments as for `accuracy`."""
    fig = blank(HALF, 260)
    ax = fig.subplots()
    _lines(ax, {name: (curve.steps, curve.greedy) for name, curve in curves.items()}, colours)
    _by_step(ax, "Accuracy of greedy answers", "step")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return fig


@drawn
def gain_by_step(arms: Sequence[Arm], colours: Mapping[str, str]) -> Figure:
    """How far each arm is ahead of the baseline at each evaluation, pair by pair, in points.

    Args:
        arms: Those that have a gain.
        colours: By arm.
    """
    fig = blank(HALF, 260)
    ax = fig.subplots()
    ax.axhline(0, color=LIGHT["grey"], linewidth=1, linestyle=(0, (4, 3)))
    _lines(ax, {arm.name: (arm.curve.steps, arm.gain_by_step) for arm in arms}, colours, scale=100)
    _by_step(ax, "Gain over the baseline, points", "step")
    return fig


@drawn
def each_against(baseline: Curve, others: Mapping[str, Curve], colours: Mapping[str, str]) -> Figure:
    """Small multiples: the sampled accuracy of every arm, before the baseline in grey."""
    rows = math.ceil(len(others) / _COLUMNS)
    fig = blank(WIDE, 20 + 150 * rows)
    axes = np.atleast_1d(fig.subplots(rows, _COLUMNS, sharex=True, sharey=True)).ravel()
    for ax, (name, curve) in zip(axes, others.items(), strict=False):
        _lines(ax, {name: (curve.steps, curve.sampled), "": (baseline.steps, baseline.sampled)},
               {**colours, "": LIGHT["grey"]})
        _by_step(ax, "\n".join(textwrap.wrap(name, 24)), "", many=3)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in axes[len(others):]:
        ax.set_axis_off()
    for ax in axes[max(0, len(others) - _COLUMNS):len(others)]:
        ax.tick_params(labelbottom=True)  # also where the row below is not full
    return fig


@drawn
def gains(columns: Mapping[str, Sequence[Estimate | None]], names: Sequence[str], colours: Mapping[str, str],
          hollow: frozenset[str]) -> Figure:
    """Gains over the baseline with 95% intervals, in points: a row an arm, a column a figure.

    Args:
        columns: Title → a gain for each arm; None where there is no pair.
        names: Of the arms, from top to bottom.
        colours: By arm.
        hollow: Arms whose dots are not filled.
    """
    fig = blank(WIDE, 76 + 27 * len(names))
    axes = np.atleast_1d(fig.subplots(1, len(columns), sharey=True))
    for ax, (title, estimates) in zip(axes, columns.items(), strict=True):
        ax.axvline(0, color=LIGHT["grey"], linewidth=1, linestyle=(0, (3, 3)))
        for y, (name, found) in enumerate(zip(names, estimates, strict=True)):
            if found is None:
                continue
            if found.low is not None and found.high is not None:
                ax.plot([100 * found.low, 100 * found.high], [y, y], color=colours[name], linewidth=5, alpha=0.4,
                        solid_capstyle="butt")
            ax.plot(100 * found.mean, y, marker="o", markersize=6.5, color=colours[name], markeredgewidth=1.6,
                    markerfacecolor=LIGHT["paper"] if name in hollow else colours[name])
        ax.set(title=title, xlabel="points", ylim=(len(names) - 0.4, -0.6))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), list(names))
    return fig


@drawn
def composition(baseline: Arm, others: Sequence[Arm], colours: Mapping[str, str]) -> Figure:
    """What each arm trained on, step by step: a row an arm, a column a figure, before the baseline in grey.

    Args:
        baseline: With batches.
        others: Empty: the baseline has the only row.
        colours: By arm.
    """
    shown = [field for field in _COMPOSITION
             if any(getattr(batch, field) is not None for arm in (baseline, *others) for batch in arm.batches)]
    rows = list(others) or [baseline]
    fig = blank(WIDE, 70 + 92 * len(rows))
    axes = fig.subplots(len(rows), len(shown), sharex=True, sharey="col", squeeze=False)
    for row, arm in zip(axes, rows, strict=True):
        for ax, field in zip(row, shown, strict=True):
            for each in (baseline, arm):
                ax.plot(*_thinned(each.batches, field), color=colours[each.name], linewidth=1.4)
            _by_step(ax, "", "", many=3)
        row[0].set_ylabel("\n".join(textwrap.wrap(arm.name, 16)), rotation=0, ha="right", va="center",
                          color=LIGHT["ink"])
    for ax, field in zip(axes[0], shown, strict=True):
        ax.set_title(_COMPOSITION[field], fontsize=11)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return fig


@drawn
def by_group(title: str, groups: Mapping[str, Mapping[str, Estimate]], colours: Mapping[str, str]) -> Figure:
    """Final accuracy by what the held-out set says of its prompts: a row a group, a dot an arm.

    Args:
        title: What the groups are.
        groups: Arm → group → accuracy.
        colours: By arm.
    """
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    fig = blank(HALF, 80 + 30 * len(names))
    ax = fig.subplots()
    for i, (arm, found) in enumerate(groups.items()):
        for y, name in enumerate(names):
            if name not in found:
                continue
            at = y + 0.28 * (i - (len(groups) - 1) / 2)
            one = found[name]
            if one.low is not None and one.high is not None:
                ax.plot([one.low, one.high], [at, at], color=colours[arm], linewidth=4, alpha=0.4,
                        solid_capstyle="butt")
            ax.plot(one.mean, at, marker="o", markersize=5.5, color=colours[arm], linestyle="none",
                    label=None if y else arm)
    ax.set_yticks(range(len(names)), ["\n".join(textwrap.wrap(name, 28)) for name in names])
    ax.set(title=title, ylim=(len(names) - 0.4, -0.6))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(groups))
    return fig


def _lines(ax: Axes, series: Mapping[str, tuple[Sequence[int], Sequence[Estimate]]], colours: Mapping[str, str],
           scale: float = 1) -> None:
    """Means as lines, intervals as bands, paler where there are many; the first is in front."""
    for place, (name, (steps, found)) in enumerate(series.items()):
        bounds = [(scale * one.low, scale * one.high) for one in found if one.low is not None and one.high is not None]
        if len(bounds) == len(found):
            ax.fill_between(steps, [low for low, _ in bounds], [high for _, high in bounds], color=colours[name],
                            alpha=min(0.2, 0.4 / len(series)), linewidth=0)
        ax.plot(steps, [scale * one.mean for one in found], color=colours[name], linewidth=2, label=name,
                marker="o" if len(found) < 3 else None, markersize=4, zorder=_FRONT - 1 - place / 100)


def _by_step(ax: Axes, title: str, xlabel: str, many: int = 6) -> None:
    ax.set(title=title, xlabel=xlabel)
    ax.grid(axis="y")
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(many, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _thinned(batches: Sequence[Batch], field: str) -> tuple[list[float], list[float]]:
    """Steps and values: means of as many neighbouring steps as it takes to be at most `_POINTS`."""
    known = [(batch.step, value) for batch in batches if (value := getattr(batch, field)) is not None]
    if not known:
        return [], []
    step, mean = (
        [float(part.mean()) for part in np.array_split(np.array(column, dtype=float), min(len(known), _POINTS))]
        for column in zip(*known, strict=True))
    return step, mean
