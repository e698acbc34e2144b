"""Plain arrays → figures, and figures → SVG that lives inside a page or PNG that travels in a data URI.

Figures are measured in CSS pixels (one matplotlib point each) and drawn in the colours of `palette.LIGHT`. Matplotlib's
settings belong to the process, so every drawing starts from matplotlib's own defaults, whatever the user's are, and
holds a lock: threads may draw at the same time, and the same arrays give the same bytes.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from saerl_core.report.palette import LIGHT

P = ParamSpec("P")

WIDE, HALF = 960, 460
"""Widths of figures in CSS pixels."""
DRAWN_DOTS = 1500
"""More dots than this are thinned: they would hide each other and swell the page."""

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and colour, and can be searched
    "svg.hashsalt": "saerl",
    "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5, "legend.frameon": False, "legend.handlelength": 1.2, "legend.borderpad": 0,
    "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["soft"], "axes.titlecolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["grey"], "axes.linewidth": 0.8, "axes.facecolor": "none", "figure.facecolor": "none",
    "xtick.color": LIGHT["grey"], "ytick.color": LIGHT["grey"], "xtick.labelcolor": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["soft"], "xtick.major.size": 3, "ytick.major.size": 3, "xtick.major.width": 0.8,
    "ytick.major.width": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.titlepad": 8, "axes.formatter.useoffset": False, "grid.color": LIGHT["rule"], "grid.linewidth": 0.6,
    "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}
_FEW_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8ad1f")  # Okabe and Ito's
_GOLDEN = (math.sqrt(5) - 1) / 2
_LOCK = threading.RLock()


@contextmanager
def _style() -> Iterator[None]:
    with _LOCK, matplotlib.style.context(["default", _SETTINGS]):
        yield


def _drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)
    return styled


def to_svg(fig: Figure, label: str = "") -> str:
    """An `<svg>` element for the inside of an HTML page.

    Its ids start with a hash of the drawing, so those of two drawings never clash; its palette colours are CSS
    variables, its text takes the page's font.

    Args:
        fig: The figure.
        label: What it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with _style():
        fig.savefig(buffer, format="svg", transparent=True,
                    metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href").replace("base64,\n", "base64,")
    svg = re.sub(r' (d|x|y)="([^"]*)"', lambda found: f' {found[1]}="{_two_decimals(found[2])}"', svg)
    svg = re.sub(r' style="([^"]*)"', lambda found: f' style="{_themed(found[1])}"', svg)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:10]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
    width, height = (round(float(inches) * 72) for inches in fig.get_size_inches())
    root = (f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{html.escape(label)}" style="stroke-linejoin: round; stroke-linecap: butt">')
    return re.sub(r"<svg[^>]*>", lambda _: root, re.sub(r"\n\s*", "\n", svg), count=1)


def to_png(fig: Figure, dpi: int = 144) -> bytes:
    """A PNG on white, which stays readable wherever it is shown; 72 dpi are one pixel per CSS pixel."""
    buffer = io.BytesIO()
    with _style():
        fig.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    smaller = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def _two_decimals(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}(?![\de])", lambda found: f"{float(found[0]):.2f}", numbers)


def _themed(style: str) -> str:
    for name, colour in LIGHT.items():
        style = style.replace(colour, f"var(--{name}, {colour})")
    return style


def cluster_colours(k: int) -> list[str]:
    """A colour for each of k clusters: far apart for neighbours, and different in lightness where hues fail."""
    if k <= len(_FEW_COLOURS):
        return list(_FEW_COLOURS[:k])
    maps = [matplotlib.colormaps[name] for name in ("viridis", "plasma")]
    full = [to_rgb(maps[i % 2](0.12 + 0.80 * ((i // 2 + 1) * _GOLDEN % 1))) for i in range(k)]
    pale = [tuple(0.84 * part + 0.16 * 0.9 for part in colour) for colour in full]  # they cover large areas
    return [to_hex((red, green, blue)) for red, green, blue in pale]


@_drawn
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
    fig = _blank(WIDE, 420 if shaded else 300)
    axes = fig.subplots(3 if shaded else 2, 1, sharex=True, height_ratios=(5, 2.4, 1.3) if shaded else (5, 1.3))
    slots, mixture = axes[0], axes[-1]
    slots.imshow((255 * paint[drawn.T]).round().astype(np.uint8), aspect="auto", interpolation="none",
                 extent=(0.5, n + 0.5, size + 0.5, 0.5))
    slots.set(ylabel="slots", title="Clusters in each batch", yticks=[1, size] if size > 1 else [1])
    if n <= 80:
        slots.vlines(np.arange(1, n) + 0.5, 0.5, size + 0.5, color=LIGHT["paper"], linewidth=1)
    _bare(slots)
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


@_drawn
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
    fig = _blank(WIDE, int(np.clip(len(numbers) * 11 + 90, 170, 640)))
    ax = fig.subplots()
    shades = ListedColormap(matplotlib.colormaps["cividis"](np.linspace(0.08, 1, 256)))
    image = ax.imshow(value[order], aspect="auto", interpolation="none", cmap=shades,
                      extent=(0.5, n + 0.5, len(numbers) - 0.5, -0.5))
    ax.set(title="Turns of the clusters", xlabel="batch = training step", ylabel="cluster")
    few = len(numbers) <= 48
    ax.set_yticks(np.arange(len(numbers)) if few else [], [str(numbers[i]) for i in order] if few else [])
    ax.tick_params(axis="y", labelsize=9, length=0)
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    _bare(ax)
    bar = fig.colorbar(image, ax=ax, aspect=28, pad=0.015, fraction=0.03)
    bar.set_label("mean difficulty" if shaded else "slots")
    bar.outline.set_visible(False)  # type: ignore[operator]  # matplotlib types it as a callable
    return fig


@_drawn
def cluster_sizes(sizes: Sequence[int], trained: Sequence[int], colours: Sequence[str]) -> Figure:
    """Clusters by size, the part that is trained on in the cluster's colour.

    Args:
        sizes: Prompts in each cluster.
        trained: Those of them that are trained on.
        colours: of each cluster.
    """
    order = sorted(range(len(sizes)), key=lambda number: (-sizes[number], number))
    fig = _blank(WIDE, 190)
    ax = fig.subplots()
    x = np.arange(len(order))
    width = 0.82 if len(order) <= 200 else 1.0
    ax.bar(x, [sizes[i] for i in order], width=width, color=LIGHT["rule"], linewidth=0, label="left out")
    ax.bar(x, [trained[i] for i in order], width=width, color=[colours[i] for i in order], linewidth=0)
    few = len(order) <= 48
    ax.set_xticks(x if few else [], [str(i) for i in order] if few else [])
    ax.tick_params(axis="x", length=0)
    ax.set(title="Cluster sizes", ylabel="prompts", xlabel="cluster" if few else "clusters, largest first")
    ax.set_xlim(-0.6, max(len(order), 6) - 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if sum(trained) < sum(sizes):
        ax.legend(loc="upper right")
    return fig


@_drawn
def held_out_difficulty(held_out: Sequence[tuple[float, float]]) -> Figure:
    """Predicted against measured difficulty of labelled prompts that the proxy had not seen.

    Args:
        held_out: (predicted, measured), one a prompt; at least one.
    """
    predicted, measured = np.asarray(held_out, dtype=np.float64).T
    order = np.argsort(predicted, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(len(order), DRAWN_DOTS)).round().astype(int)]
    fig = _blank(HALF, 320)
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color=LIGHT["grey"], linewidth=1, linestyle=(0, (3, 3)))
    ax.scatter(predicted[shown], measured[shown], s=15, color=LIGHT["blue"], alpha=0.38, linewidths=0)
    groups = np.array_split(order, min(8, max(1, len(order) // 10)))
    centre = [float(predicted[group].mean()) for group in groups]
    mean = [float(measured[group].mean()) for group in groups]
    spread = [1.96 * float(measured[group].std()) / math.sqrt(len(group)) for group in groups]
    ax.errorbar(centre, mean, yerr=spread, color=LIGHT["orange"], marker="o", markersize=4.5, linewidth=1.6,
                elinewidth=1.2, label="mean of equal groups, 95% interval")
    ax.set(title="Held-out prompts", xlabel="predicted difficulty", ylabel="measured difficulty (1 − pass rate)",
           xlim=(-0.03, 1.03), ylim=(-0.05, 1.05))
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, 1.0))
    return fig


@_drawn
def predicted_difficulty(trained: np.ndarray, left_out: np.ndarray) -> Figure:
    """Predicted difficulty of the prompts that are trained on, and of those that are not."""
    fig = _blank(HALF, 320)
    _pair_of_histograms(fig, trained, left_out, ("trained on", "left out"), "Predicted difficulty of all prompts",
                        "predicted difficulty", (LIGHT["blue"], LIGHT["orange"]))
    return fig


@_drawn
def difficulty_by_level(level: np.ndarray, difficulty: np.ndarray) -> Figure:
    """Predicted difficulty at each level that the data set itself names: median, quartiles, 5% and 95%."""
    levels = np.unique(level)
    fig = _blank(HALF, 280)
    ax = fig.subplots()
    for x, name in enumerate(levels):
        ends = np.quantile(difficulty[level == name], [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([x, x], ends[[0, 4]], color=LIGHT["blue"], linewidth=1)
        ax.plot([x, x], ends[[1, 3]], color=LIGHT["blue"], linewidth=9, alpha=0.45, solid_capstyle="butt")
        ax.plot([x - 0.16, x + 0.16], ends[[2, 2]], color=LIGHT["blue"], linewidth=2.2)
    ax.set_xticks(range(len(levels)), [f"{name:g}" for name in levels])
    ax.set(title="Against the data set's own levels", xlabel="level", ylabel="predicted difficulty",
           xlim=(-0.6, len(levels) - 0.4))
    return fig


@_drawn
def held_out_quality(intact: np.ndarray, damaged: np.ndarray, threshold: float | None) -> Figure:
    """Scores of held-out intact prompts and of damaged copies."""
    fig = _blank(HALF, 300)
    ax = _pair_of_histograms(fig, intact, damaged, ("intact", "damaged on purpose"), "Held-out prompts",
                             "quality score", (LIGHT["blue"], LIGHT["orange"]))
    _mark_threshold(ax, threshold)
    return fig


@_drawn
def quality_of_prompts(scores: np.ndarray, threshold: float | None) -> Figure:
    """Scores of the data set's own prompts."""
    fig = _blank(HALF, 300)
    ax = fig.subplots()
    ax.hist(scores, bins=np.linspace(0, 1, 41).tolist(), color=LIGHT["blue"], alpha=0.6, histtype="stepfilled",
            linewidth=0)
    ax.set(title="Prompts of this data set", xlabel="quality score", ylabel="prompts", xlim=(0, 1))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _mark_threshold(ax, threshold)
    return fig


@_drawn
def active_features(active: np.ndarray) -> Figure:
    """How many SAE features fire in a prompt."""
    fig = _blank(HALF, 240)
    ax = fig.subplots()
    ax.hist(active, bins=min(40, max(1, int(np.ptp(active)) + 1)), color=LIGHT["blue"], alpha=0.6,
            histtype="stepfilled", linewidth=0)
    ax.axvline(float(np.median(active)), color=LIGHT["ink"], linewidth=1, linestyle=(0, (4, 3)))
    ax.set(title="Active features per prompt", xlabel="features (dashed: median)", ylabel="prompts")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return fig


@_drawn
def active_quantiles(quantiles: Sequence[float]) -> Figure:
    """The same, where only minimum, quartiles and maximum are known."""
    lowest, low, middle, high, highest = quantiles
    fig = _blank(HALF, 120)
    ax = fig.subplots()
    ax.plot([lowest, highest], [0, 0], color=LIGHT["blue"], linewidth=1)
    ax.plot([low, high], [0, 0], color=LIGHT["blue"], linewidth=12, alpha=0.45, solid_capstyle="butt")
    ax.plot([middle, middle], [-0.18, 0.18], color=LIGHT["blue"], linewidth=2.4)
    ax.set(title="Active features per prompt", xlabel="minimum, quartiles, maximum", yticks=[], ylim=(-0.6, 0.6))
    ax.spines["left"].set_visible(False)
    return fig


@_drawn
def reward(step: np.ndarray, mean: np.ndarray, accuracy: np.ndarray, difficulty: np.ndarray | None) -> Figure:
    """Reward of each step and held-out accuracy; below, how hard the step's batch was predicted to be.

    Args:
        step: int [n].
        mean: float [n], mean reward; NaN where it is not known.
        accuracy: float [n], held-out accuracy; NaN where it was not measured.
        difficulty: float [n], mean predicted difficulty of the batch; NaN where unknown. None: no second panel.
    """
    fig = _blank(WIDE, 400 if difficulty is not None else 300)
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


@_drawn
def step_series(step: np.ndarray, value: np.ndarray, title: str, *, as_percent: bool = False,
                smooth: bool = True) -> Figure:
    """One figure of the training, step by step; with its moving mean, where it is noisy."""
    fig = _blank(HALF, 190)
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


@_drawn
def accuracy_gain(gains: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Gains in accuracy with their intervals, against zero.

    Args:
        gains: name → (difference, low, high), as shares.
    """
    fig = _blank(HALF, 60 + 44 * len(gains))
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


def _blank(width: int, height: int) -> Figure:
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def _bare(ax: Axes) -> None:
    for spine in ax.spines.values():
        spine.set_visible(False)


def _is_informative(values: np.ndarray) -> bool:
    """Whether values differ at all: a closed gate gives every prompt the same."""
    known = values[np.isfinite(values)]
    return bool(known.size) and float(np.ptp(known)) > 0


def _as_steps(*series: np.ndarray) -> tuple[np.ndarray, ...]:
    """Batch numbers and series as corners of a staircase, so that a batch is as wide as its column above."""
    edges = np.arange(len(series[0]) + 1) + 0.5
    return np.repeat(edges, 2)[1:-1], *(np.repeat(values, 2) for values in series)


def _pair_of_histograms(fig: Figure, first: np.ndarray, second: np.ndarray, names: tuple[str, str], title: str,
                        xlabel: str, colours: tuple[str, str]) -> Axes:
    """Two histograms over [0, 1], the first filled, the second outlined: neither hides the other."""
    ax = fig.subplots()
    bins = np.linspace(0, 1, 41).tolist()
    ax.hist(first, bins=bins, color=colours[0], alpha=0.6, histtype="stepfilled", linewidth=0,
            label=f"{names[0]} ({len(first):,})")
    if len(second):
        ax.hist(second, bins=bins, color=colours[1], histtype="step", linewidth=1.6,
                label=f"{names[1]} ({len(second):,})")
    ax.set(title=title, xlabel=xlabel, ylabel="prompts", xlim=(0, 1))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.margins(y=0.16)
    ax.legend(loc="upper left")
    return ax


def _mark_threshold(ax: Axes, threshold: float | None) -> None:
    if threshold is not None:
        ax.axvline(threshold, color=LIGHT["ink"], linewidth=1, linestyle=(0, (4, 3)))


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
