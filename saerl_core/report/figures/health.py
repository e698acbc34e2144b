"""How the SAE sees the data set."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from saerl_core.report.canvas import HALF, blank, drawn, mark
from saerl_core.report.palette import LIGHT


@drawn
def active_features(edges: Sequence[int], counts: Sequence[int], median: float) -> Figure:
    """How many SAE features fire in a prompt.

    Args:
        edges: Of the bins, one more than there are.
        counts: Prompts in each bin.
        median: Active features of the median prompt.
    """
    fig = blank(HALF, 240)
    ax = fig.subplots()
    ax.stairs(counts, edges, fill=True, color=LIGHT["blue"], alpha=0.6, linewidth=0)
    mark(ax, median)
    ax.set(title="Active features per prompt", xlabel="features (dashed: median)", ylabel="prompts")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return fig


@drawn
def unexplained(quantiles: Sequence[float], limit: float) -> Figure:
    """How much of a prompt's variance the SAE misses: minimum, quartiles, maximum; dashed, where a prompt is far."""
    lowest, low, middle, high, highest = quantiles
    fig = blank(HALF, 130)
    ax = fig.subplots()
    ax.plot([lowest, highest], [0, 0], color=LIGHT["blue"], linewidth=1)
    ax.plot([low, high], [0, 0], color=LIGHT["blue"], linewidth=12, alpha=0.45, solid_capstyle="butt")
    ax.plot([middle, middle], [-0.18, 0.18], color=LIGHT["blue"], linewidth=2.4)
    mark(ax, limit)
    ax.set(title="Variance of a prompt that the SAE misses", yticks=[], ylim=(-0.6, 0.6),
           xlabel="minimum, quartiles, maximum (dashed: far from the SAE)", xlim=(0, 1.05 * max(highest, limit)))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.spines["left"].set_visible(False)
    return fig
