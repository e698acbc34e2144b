"""What figures are drawn on, and figures → SVG that lives inside a page or PNG that travels in a data URI.

Figures are measured in CSS pixels (one matplotlib point each) and drawn in the colours of `palette.LIGHT`. Matplotlib's
settings belong to the process, so every drawing starts from matplotlib's own defaults, whatever the user's are, and
holds a lock: threads may draw at the same time, and the same arrays give the same bytes.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from saerl_core.report.palette import LIGHT

P = ParamSpec("P")

WIDE, HALF = 960, 460
"""Widths of figures in CSS pixels."""

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and colour, and can be searched
    "svg.hashsalt": "saerl",
    "text.parse_math": False,  # a subject's name may hold a dollar
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
_LOCK = threading.RLock()


@contextmanager
def _style() -> Iterator[None]:
    with _LOCK, matplotlib.style.context(["default", _SETTINGS]):
        yield


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws a figure, made to draw it in our style."""
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


def blank(width: int, height: int) -> Figure:
    """An empty figure, in CSS pixels."""
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def bare(ax: Axes) -> None:
    """Axes without a frame."""
    for spine in ax.spines.values():
        spine.set_visible(False)


def pair_of_histograms(fig: Figure, first: np.ndarray, second: np.ndarray, names: tuple[str, str], title: str,
                        xlabel: str, colours: tuple[str, str], span: tuple[float, float] = (0.0, 1.0)) -> Axes:
    """Two histograms over `span`, the first filled, the second outlined: neither hides the other."""
    ax = fig.subplots()
    bins = np.linspace(*span, 41).tolist()
    ax.hist(first, bins=bins, color=colours[0], alpha=0.6, histtype="stepfilled", linewidth=0,
            label=f"{names[0]} ({len(first):,})")
    if len(second):
        ax.hist(second, bins=bins, color=colours[1], histtype="step", linewidth=1.6,
                label=f"{names[1]} ({len(second):,})")
    ax.set(title=title, xlabel=xlabel, ylabel="prompts", xlim=span)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.margins(y=0.16)
    ax.legend(loc="upper left")
    return ax


def mark(ax: Axes, value: float | None) -> None:
    """A dashed line across the axes; nothing where there is no value."""
    if value is not None:
        ax.axvline(value, color=LIGHT["ink"], linewidth=1, linestyle=(0, (4, 3)))
