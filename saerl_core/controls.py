"""The controls that a sceptic asks for: what a run under one of them says of itself, wherever its results are shown."""

from __future__ import annotations

from saerl_core.config import RunConfig

RANDOM, RESIDUAL = "random projection", "residual stream"
ENCODERS = (RANDOM, RESIDUAL)
"""The controls that stand in the SAE's place (`saerl_core.encoders`), as their architecture is called."""
_NOTES = {
    ("features", "encoder", "random"): "the features are random directions in place of the SAE's",
    ("features", "encoder", "residual"): "the features are the residual stream itself, without the SAE",
    ("labels", "shuffle", True): "pass rates are permuted among the labelled prompts, so that they say nothing",
    ("quality", "shuffle_labels", True): "good and bad are permuted among the known prompts, so that they say nothing",
    ("quality", "method", "random"): "prompts are left out by lot, whatever they hold",
}
"""(section, field, value) → what it does."""


def notes(config: RunConfig) -> list[str]:
    """A line for each control that a config switches on."""
    return [f"a control: {words} ({section}.{field}: {str(value).lower()})"
            for (section, field, value), words in _NOTES.items()
            if getattr(getattr(config, section), field) == value]
