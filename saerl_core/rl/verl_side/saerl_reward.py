"""verl's reward function: 1 for a right final answer, else 0."""

from __future__ import annotations

from typing import Any

from saerl_verifier import is_correct


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> float:
    """The signature that verl calls (`reward.custom_reward_function`)."""
    return 1.0 if is_correct(solution_str, ground_truth) else 0.0
