"""Plain arrays → matplotlib figures, in the style of `canvas`."""
