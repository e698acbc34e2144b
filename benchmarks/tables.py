"""Tables that a benchmark prints, ready for a README."""

from __future__ import annotations

import sys
from collections.abc import Sequence

Table = dict[str, dict[str, list[float]]]
"""column → row → figures: a value, or a value with its interval, or these and a difference with its interval"""


def show(title: str, table: Table, corner: str) -> None:
    """Print a table in Markdown."""
    lines = [f"\n{title}\n", f"| {corner} | {' | '.join(table)} |", "|---" * (len(table) + 1) + "|"]
    for name in next(iter(table.values())):
        lines.append(f"| {name} | {' | '.join(_cell(column[name]) for column in table.values())} |")
    sys.stdout.write("\n".join(lines) + "\n")


def _cell(figures: Sequence[float]) -> str:
    value, *interval = figures
    text = f"{value:.3f}"
    if len(interval) >= 2:
        text += f" ({interval[0]:.3f} to {interval[1]:.3f})"
    if len(interval) == 5:
        text += f", {interval[2]:+.3f} ({interval[3]:+.3f} to {interval[4]:+.3f})"
    return text
