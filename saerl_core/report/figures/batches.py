"""The order of training: which clusters share a batch, how hard each batch is, how alike its prompts are."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saerl_core.report.canvas import WIDE, bare, blank, drawn
from saerl_core.report.palette import LIGHT


@drawn
def batch_sequence(batches: np.ndarray, cluster: np.ndarray, difficulty: np.ndarray, epoch: np.ndarray,
                   colours: Sequence[str]) -> Figure:
    """The training order: each batch a column, its slots coloured by cluster; below, difficulty and mixture.

    Args:
        batches: int [batches, batch_size], row numbers.
        cluster: int [n], -1 where a row has none.
        difficulty: float [n], NaN where a row has none.
        epoch: int [batches].
        colours: of each cluster.
    """
    n, size = batches.shape
    drawn = np.sort(cluster[batches], axis=1)
    paint = np.array([to_rgb(colour) for colour in (*colours, LIGHT["grey"])])  # -1 takes the last one
    shaded = _is_informative(difficulty[batches])
    fig = blank(WIDE, 420 if shaded else 300)
    axes = fig.subplots(3 if shaded else 2, 1, sharex=True, height_ratios=(5, 2.4, 1.3) if shaded else (5, 1.3))
    slots, mixture = axes[0], axes[-1]
    slots.imshow((255 * paint[drawn.T]).round().astype(np.uint8), aspect="auto", interpolation="none",
                 extent=(0.5, n + 0.5, size + 0.5, 0.5))
    slots.set(ylabel="slots", title="Clusters in each batch", yticks=[1, size] if size > 1 else [1])
    if n <= 80:
        slots.vlines(np.arange(1, n) + 0.5, 0.5, size + 0.5, color=LIGHT["paper"], linewidth=1)
    bare(slots)
    if shaded:
        low, high = np.nanquantile(difficulty[batches], [0.25, 0.75], axis=1)
        x, low, high, mean = _as_steps(low, high, np.nanmean(difficulty[batches], axis=1))
        axes[1].fill_between(x, low, high, color=LIGHT["blue"], alpha=0.22, linewidth=0, label="quartiles")
        axes[1].plot(x, mean, color=LIGHT["blue"], label="mean")
        axes[1].set(ylabel="difficulty", title="Predicted difficulty")
        axes[1].legend(loc="upper right", bbox_to_anchor=(1, 1.32), ncols=2, columnspacing=1.2)
    several = [len(np.unique(row)) for row in drawn]
    if n <= 80:
        mixture.bar(np.arange(1, n + 1), several, width=0.82, color=LIGHT["grey"], linewidth=0)
    else:
        mixture.stairs(several, np.arange(n + 1) + 0.5, fill=True, color=LIGHT["grey"])
    mixture.set(ylabel="clusters", xlabel="batch = training step", title="Clusters per batch", xlim=(0.5, n + 0.5))
    mixture.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    mixture.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    for start in np.flatnonzero(np.diff(epoch)) + 1:
        for ax in axes:
            ax.axvline(start + 0.5, color=LIGHT["ink"], linewidth=1.2)
    fig.align_ylabels()
    return fig


@drawn
def cluster_roll(batches: np.ndarray, cluster: np.ndarray, difficulty: np.ndarray) -> Figure:
    """When each cluster has its turn: a row for each cluster, hardest on top, shaded by the difficulty drawn.

    Args:
        batches: int [batches, batch_size], row numbers.
        cluster: int [n], -1 where a row has none.
        difficulty: float [n], NaN where a row has none. Where it says nothing, the shade is the number of slots.
    """
    n, size = batches.shape
    numbers = np.unique(cluster[batches])
    cell = (np.searchsorted(numbers, cluster[batches]), np.repeat(np.arange(n)[:, None], size, axis=1))
    slots = np.zeros((len(numbers), n))
    np.add.at(slots, cell, 1)
    shaded = _is_informative(difficulty[batches])
    total = slots.copy()
    if shaded:
        total = np.zeros_like(slots)
        np.add.at(total, cell, np.nan_to_num(difficulty[batches]))
    value = np.divide(total, slots if shaded else 1, out=np.full_like(slots, np.nan), where=slots > 0)
    overall = total.sum(axis=1) / slots.sum(axis=1)
    order = np.argsort(-overall, kind="stable") if shaded else np.arange(len(numbers))
    fig = blank(WIDE, int(np.clip(len(numbers) * 11 + 90, 170, 640)))
    ax = fig.subplots()
    shades = ListedColormap(matplotlib.colormaps["cividis"](np.linspace(0.08, 1, 256)))
    image = ax.imshow(value[order], aspect="auto", interpolation="none", cmap=shades,
                      extent=(0.5, n + 0.5, len(numbers) - 0.5, -0.5))
    ax.set(title="Turns of the clusters", xlabel="batch = training step", ylabel="cluster")
    few = len(numbers) <= 48
    ax.set_yticks(np.arange(len(numbers)) if few else [], [str(numbers[i]) for i in order] if few else [])
    ax.tick_params(axis="y", labelsize=9, length=0)
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    bare(ax)
    bar = fig.colorbar(image, ax=ax, aspect=28, pad=0.015, fraction=0.03)
    bar.set_label("mean difficulty" if shaded else "slots")
    bar.outline.set_visible(False)  # type: ignore[operator]  # matplotlib types it as a callable
    return fig


@drawn
def overlap(ours: Sequence[float], shuffled: Sequence[float]) -> Figure:
    """How alike the prompts of each batch are, beside the same prompts shuffled.

    Args:
        ours: Mean pairwise cosine of each batch.
        shuffled: The same of the shuffled batches, as many.
    """
    fig = blank(WIDE, 200)
    ax = fig.subplots()
    step = np.arange(1, len(ours) + 1)
    for values, colour, name in ((shuffled, "grey", "shuffled"), (ours, "blue", "this order")):
        ax.axhline(float(np.mean(values)), color=LIGHT[colour], linewidth=1, linestyle=(0, (4, 3)))
        ax.plot(step, values, color=LIGHT[colour], marker="o" if len(ours) < 3 else None, markersize=4, label=name)
    ax.set(title="Overlap within each batch (dashed: mean)", xlabel="batch = training step",
           ylabel="mean cosine of a pair", xlim=(0.5, len(ours) + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.grid(axis="y")
    ax.margins(y=0.1)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return fig


def _is_informative(values: np.ndarray) -> bool:
    """Whether values differ at all: a closed gate gives every prompt the same."""
    known = values[np.isfinite(values)]
    return bool(known.size) and float(np.ptp(known)) > 0


def _as_steps(*series: np.ndarray) -> tuple[np.ndarray, ...]:
    """Batch numbers and series as corners of a staircase, so that a batch is as wide as its column above."""
    edges = np.arange(len(series[0]) + 1) + 0.5
    return np.repeat(edges, 2)[1:-1], *(np.repeat(values, 2) for values in series)
