"""An SAE's training: what it explains of held-out text, and how it came to that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saerl_core.report import markdown
from saerl_core.report.markup import count, figure, percent, render, svg

_SERIES = {
    "explained_variance": "Explained variance of the batch",
    "loss": "Loss",
    "l0": "Features that fire on a token",
    "dead_share": "Share of dead features",
    "learning_rate": "Learning rate",
}
"""Columns of the curve, and what they are called here."""
_SHARES = {"explained_variance", "dead_share"}


def training_page(card: Mapping[str, Any], curve: Sequence[Mapping[str, float]]) -> str:
    """The training as one HTML page.

    Args:
        card: What `card.json` holds.
        curve: A record a point: `step` and the columns of `_SERIES`.
    """

    return render("sae.html.jinja", title=_title(card), lead=lead(card), figures=_headline(card), rows=_rows(card),
                  panels=[svg(fig, name) for name, fig in _panels(curve)])


def training_markdown(card: Mapping[str, Any], curve: Sequence[Mapping[str, float]]) -> str:
    """The same in short, with inline pictures; arguments as for `training_page`."""
    return markdown.assemble(_title(card), lead(card), [], [*_headline(card), *_rows(card)], _panels(curve)[:3])


def lead(card: Mapping[str, Any]) -> str:
    """The findings in two sentences."""
    found, loss = card["heldout"], card["heldout"]["cross_entropy"]
    return (f"On {count(found['tokens'])} tokens of held-out text the SAE explains "
            f"{percent(found['explained_variance'])} of the variance with {figure(found['l0'], 1)} features a token; "
            f"{percent(found['dead_share'])} of its features fire on none of them. The model keeps "
            f"{percent(loss['recovered'])} of what it loses without the layer: {figure(loss['clean'], 3)} nats a token "
            f"as it is, {figure(loss['spliced'], 3)} through the SAE, {figure(loss['ablated'], 3)} with zeros.")


def _title(card: Mapping[str, Any]) -> str:
    return f"{card['architecture']} SAE, {count(card['d_sae'])} features"


def _headline(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = card["heldout"]
    return [("explained variance", percent(found["explained_variance"])), ("features a token", figure(found["l0"], 1)),
            ("dead features", percent(found["dead_share"])),
            ("loss recovered", percent(found["cross_entropy"]["recovered"]))]


def _rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    training, model = card["training"], card["model"]
    return [("read", f"{model['name']}, after layer {card['layer']} of 0 to {model['layers'] - 1}"),
            ("trained on", f"{count(training['tokens'])} tokens in {count(training['steps'], 'step')}; "
             f"{count(training['documents'], 'document')}, {figure(training['epochs'])} epochs"),
            ("held out", f"{count(card['heldout']['documents'], 'document')}, "
             f"{count(card['heldout']['tokens'])} tokens")]


def _panels(curve: Sequence[Mapping[str, float]]) -> list[tuple[str, Any]]:
    from saerl_core.report.figures.training import step_series

    step = np.array([point["step"] for point in curve])
    return [(title, step_series(step, np.array([point[name] for point in curve]), title,
                                        as_percent=name in _SHARES, smooth=False)) for name, title in _SERIES.items()]
