"""verl's reward function: the run's verifier."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from saerl_judge import FOLDER_VARIABLE, Verify, load_verifier


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, *,
    verifier: str = "exact", identity: str | None = None, **_: Any
) -> float:
    """The signature that verl calls (`reward.custom_reward_function`, the last two from its `reward_kwargs`).

    Raises:
        ValueError: the verifier is not to be had here, or is not the one that judged the labels.
    """
    return configured_verifier(verifier, identity)(solution_str, ground_truth)


@lru_cache(maxsize=1)
def configured_verifier(name: str, identity: str | None) -> Verify:
    """The verifier of a job, found in this interpreter.

    Raises:
        ValueError: see `compute_score`.
    """
    verify, found = load_verifier(name, os.environ.get(FOLDER_VARIABLE))
    if identity not in (None, found):
        raise ValueError(f"policy.verifier: {identity} judged the labels, verl's environment has {found}")
    return verify
