"""Clusters: their colours, their sizes, how their number was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saerl_core.report.canvas import HALF, WIDE, blank, drawn
from saerl_core.report.palette import LIGHT

TELLING = 12
"""Beyond so many clusters, colours no longer tell every pair of them apart."""
_FEW_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8ad1f")  # Okabe and Ito's
_GOLDEN = (math.sqrt(5) - 1) / 2


def cluster_colours(k: int) -> list[str]:
    """A colour for each of k clusters: far apart for neighbours, and different in lightness where hues fail."""
    if k <= len(_FEW_COLOURS):
        return list(_FEW_COLOURS[:k])
    maps = [matplotlib.colormaps[name] for name in ("viridis", "plasma")]
    full = [to_rgb(maps[i % 2](0.12 + 0.80 * ((i // 2 + 1) * _GOLDEN % 1))) for i in range(k)]
    pale = [tuple(0.84 * part + 0.16 * 0.9 for part in colour) for colour in full]  # they cover large areas
    return [to_hex((red, green, blue)) for red, green, blue in pale]


@drawn
def cluster_sizes(sizes: Sequence[int], trained: Sequence[int], colours: Sequence[str]) -> Figure:
    """Clusters by size, the part that is trained on in the cluster's colour.

    Args:
        sizes: Prompts in each cluster.
        trained: Those of them that are trained on.
        colours: of each cluster.
    """
    order = sorted(range(len(sizes)), key=lambda number: (-sizes[number], number))
    fig = blank(WIDE, 190)
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


@drawn
def stability(curve: Sequence[Mapping[str, Any]], chosen: int) -> Figure:
    """How stable each number of clusters is, and the one that was chosen (`choose_k.Stability`)."""
    fig = blank(HALF, 280)
    ax = fig.subplots()
    k, mean, error = ([entry[name] for entry in curve] for name in ("k", "mean", "error"))
    ax.axvline(chosen, color=LIGHT["orange"], linewidth=1.2, label=f"chosen: {chosen}")
    ax.errorbar(k, mean, yerr=error, color=LIGHT["blue"], marker="o", markersize=4.5, elinewidth=1.2,
                label="mean, standard error")
    ax.set_xscale("log", base=2)
    ax.set_xticks(k, [str(number) for number in k])
    ax.set_xticks([], minor=True)
    ax.set(title="Stability of the clusters", xlabel="number of clusters", ylabel="agreement of two halves")
    ax.grid(axis="y")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.margins(y=0.18)
    ax.legend(loc="upper right", ncols=2)
    return fig
