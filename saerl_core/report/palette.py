"""The colours of pages and figures, each with a light and a dark value.

Figures are drawn in the light values. Inside a page each becomes a CSS variable of the same name, so that one drawing
serves both modes. Blue against orange tells things apart in all common forms of colour blindness.
"""

from __future__ import annotations

PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#fdfdfb", "#15171a"),
    "wash": ("#f4f4f0", "#1e2125"),
    "ink": ("#1c1f23", "#e7e6e2"),
    "soft": ("#5f666e", "#a0a6ad"),
    "rule": ("#d6d8d4", "#3a3f45"),
    "blue": ("#1668a5", "#5fb2e6"),
    "orange": ("#c2550f", "#f09a55"),
    "grey": ("#a9aeb3", "#666d75"),
}
"""name → (light, dark)"""

LIGHT = {name: light for name, (light, _) in PALETTE.items()}
