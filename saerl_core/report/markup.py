"""Text into markup: the template environment, prompts made harmless to look at, numbers as people write them."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from saerl_core.report.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_HYPHEN = re.compile(r"(?<![^\s(])-(?=\.?\d)")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#!|~$])")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters.update(count=count, percent=percent, figure=figure)
    environment.globals["palette"] = PALETTE
    return environment


def render(template: str, **values: Any) -> str:
    """A template filled in; every string that is not markup of ours is escaped."""
    return _environment().get_template(template).render(**values)


def svg(fig: Figure, label: str) -> Markup:
    """A figure as markup.

    Args:
        fig: The figure.
        label: What it shows, for those who cannot see it.
    """
    from saerl_core.report import canvas

    return Markup(canvas.to_svg(fig, label))


def shorten(text: str, length: int) -> str:
    """One line of at most `length` characters; control characters, those that
    turn the direction of text among them, are shown as `�`."""
    line = _UNSEEN.sub("\ufffd", " ".join(text.split()))
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def plain(text: str) -> str:
    """Text that markdown, and the HTML in it, shows as it is."""
    return _MARKDOWN.sub(r"\\\1", html.escape(shorten(text, 1000), quote=False))


def sentence(text: str) -> str:
    """A stage's words as a sentence of the page: it begins large, ends with a stop, and its minus is a minus."""
    text = _HYPHEN.sub("−", shorten(str(text), 600))
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!", "…")) else ".")


def count(number: float, noun: str = "", plural: str = "") -> str:
    """`1,280 prompts`."""
    digits = f"{number:,.0f}"
    return f"{digits} {noun if number == 1 else plural or noun + 's'}" if noun else digits


def percent(share: float, decimals: int = 1) -> str:
    """`12.3%`; a share too small to show is not shown as none."""
    smallest = 10 ** -(decimals + 2)
    return f"<{smallest:.{decimals}%}" if 0 < share < smallest / 2 else f"{share:.{decimals}%}"


def figure(value: float | None, decimals: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{decimals}f}".replace("-", "−")


def signed(value: float, decimals: int = 2) -> str:
    """`+13.9`, `−0.4`."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval(value: float | None, low: float | None, high: float | None, decimals: int = 2) -> str:
    """`0.71 (0.65 to 0.76)`; a dash where there is no value."""
    return "–" if value is None else " ".join(
        [figure(value, decimals), f"({figure(low, decimals)} to {figure(high, decimals)})"])
