"""A manifest in short: its figures and three pictures, as markdown that Prefect's UI shows beside the run.

The pictures travel in the text as data URIs. They are made again at a lower resolution until the whole is small enough
to store with a run and to send to a browser.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_core.controls import ENCODERS
from saerl_core.report import calibration, facts
from saerl_core.report.markup import count, percent, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from saerl_core.manifest import Curation

SIZE = 300_000
"""Upper bound in bytes."""
_RESOLUTIONS = (120, 96, 72, 54, 36)

_CELL = 60
"""Characters: the UI cuts longer cells of a table off."""

Row = tuple[str, str]


def summary(header: Mapping[str, Any], curation: Curation) -> str:
    """The manifest's figures and its three most telling pictures.

    Args:
        header: The manifest's header.
        curation: The findings behind it.
    """
    from saerl_core.report.figures.batches import batch_sequence
    from saerl_core.report.figures.clusters import cluster_colours, cluster_sizes
    from saerl_core.report.figures.scores import reliability

    colours = cluster_colours(facts.cluster_count(header, curation))
    pictures = [("Clusters and difficulty of each batch", batch_sequence(
        curation.schedule.batches, curation.cluster, curation.difficulty, curation.schedule.epoch, colours))]
    if held_out := facts.part(header, "difficulty").get("held_out"):
        bins = calibration.bins(*np.asarray(held_out, dtype=np.float64).T)
        pictures.append(("Predicted against measured difficulty",
                         reliability(bins, "predicted difficulty", "measured, mean")))
    if sizes := facts.part(header, "clusters").get("sizes"):
        trained = facts.trained_per_cluster(curation, len(sizes))
        pictures.append(("Cluster sizes", cluster_sizes(sizes, trained, colours)))
    return assemble(f"Curation of {facts.data_name(header)}", facts.lead(header, curation), facts.warnings(header),
                    _rows(header, curation), pictures)


def _rows(header: Mapping[str, Any], curation: Curation) -> list[Row]:
    prompts, health = header["prompts"], facts.part(header, "health")
    rows = [("prompts read", count(prompts["read"])), ("trained on", count(prompts["kept"])),
            *((f"left out: {reason.replace('_', ' ')}", count(number))
              for reason, number in prompts["dropped_by_reason"].items()),
            ("batches", f"{count(header['batches'])} × {header['batch_size']} prompts")]
    rows += [(decision.name.lower(), f"{'in use' if decision.used else 'not used'}. {decision.words}")
             for decision in facts.decisions(header, curation)]
    rows += facts.findings(header)
    if health:
        architecture = facts.part(header, "inputs", "sae").get("architecture")
        rows.append((architecture if architecture in ENCODERS else "SAE",
                     f"{percent(health['firing_share'])} of its features fire on these prompts"))
    if unexplained := health.get("fvu_quantiles"):
        rows.append(("variance that it misses", f"{percent(unexplained[2])} in the median prompt"))
    return rows


def assemble(title: str, lead: str, warnings: Sequence[str], rows: Sequence[Row],
             pictures: Sequence[tuple[str, Figure]]) -> str:
    """Markdown of at most `SIZE` bytes.

    Args:
        title: Plain text, as are all other strings.
        lead: One or two sentences.
        warnings: What must not be missed.
        rows: Name and value: a table of what is short, a paragraph for each that is long.
        pictures: What each shows, and the figure.
    """
    from saerl_core.report import canvas

    parts = [f"# {plain(title)}", plain(lead)]
    parts += [f"> **{plain(warning)}**" for warning in warnings]
    table = [(name, value) for name, value in rows if len(value) <= _CELL]
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {plain(name)} | {plain(value)} |" for name, value in table)]))
    parts += [f"**{plain(name)}**: {plain(value)}" for name, value in rows if len(value) > _CELL]
    text = "\n\n".join(parts) + "\n"
    return text + _inlined(pictures, SIZE - len(text.encode()), canvas.to_png)


def _inlined(pictures: Sequence[tuple[str, Figure]], room: int, to_png: Callable[[Figure, int], bytes]) -> str:
    """The pictures as `<img>` tags, as sharp as the room allows; nothing where it allows none."""
    for dpi in _RESOLUTIONS:
        text = "".join(f'\n<img alt="{name}" width="{round(float(fig.get_size_inches()[0]) * 72)}" '
                       f'src="data:image/png;base64,{base64.b64encode(to_png(fig, dpi)).decode()}">\n'
                       for name, fig in pictures)
        if len(text) <= room:
            return text
    return ""
