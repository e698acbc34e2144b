"""A policy's accuracy on held-out problems, and whether a difference between two policies is more than luck.

Both policies answer the same problems with the same random numbers, so the comparison is paired, problem by problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saerl_core.config import EvaluationConfig
from saerl_core.rl import rollouts

_DRAWS = 2000


@dataclass(frozen=True)
class Evaluation:
    """How right the answers were, of n problems: 1 is right, 0 is wrong, unless the verifier gives partial credit."""

    sampled: np.ndarray
    """float [n, samples], at temperature 1"""
    greedy: np.ndarray
    """float [n]"""

    @property
    def accuracy(self) -> float:
        """Mean of the sampled answers."""
        return float(self.sampled.mean())

    @property
    def greedy_accuracy(self) -> float:
        """Share of problems solved greedily."""
        return float(self.greedy.mean())


@dataclass(frozen=True)
class Difference:
    """After − before, with its 95% interval."""

    difference: float
    low: float
    high: float


def evaluate(policy: Path, messages: Sequence[list[dict[str, str]]], answers: Sequence[str],
             config: EvaluationConfig, *, score: Callable[[str, str], float], max_response_tokens: int,
             trust_remote_code: bool = False, progress: Callable[[int, int], None] | None = None) -> Evaluation:
    """Let a policy answer held-out problems, several times at temperature 1 and once greedily.

    Args:
        policy: Folder of a causal LM.
        messages: n chats.
        answers: n reference answers.
        config: Samples and seed; `prompts` is the caller's concern.
        score: The verifier, (response, reference answer) → reward in [0, 1].
        max_response_tokens: Sampling stops there.
        trust_remote_code: Run code that comes with the model.
        progress: Called with problems done and problems in all; each counts twice, sampled and greedy.

    Raises:
        ModelError: the policy cannot be loaded.
    """
    loaded = rollouts.load_policy(policy, trust_remote_code=trust_remote_code)
    n = len(messages)

    def answered(samples: int, temperature: float, before: int) -> np.ndarray:
        def tell(done: int, _total: int) -> None:
            if progress is not None:
                progress(before + done, 2 * n)

        return rollouts.sample_scores(
            loaded, messages, answers, score=score, samples=samples, temperature=temperature,
            max_response_tokens=max_response_tokens, seed=config.seed, progress=tell)

    return Evaluation(sampled=answered(config.samples, 1.0, 0), greedy=answered(1, 0.0, n)[:, 0])


def compare(before: np.ndarray, after: np.ndarray, seed: int = 0) -> Difference:
    """Paired bootstrap over problems.

    Args:
        before: [n] or [n, samples], right or wrong.
        after: The same of the other policy, on the same problems.
        seed: Seed of the resampling.
    """
    change = after.reshape(len(after), -1).mean(axis=1) - before.reshape(len(before), -1).mean(axis=1)
    rows = np.random.default_rng(seed).integers(0, len(change), (_DRAWS, len(change)))
    low, high = np.quantile(change[rows].mean(axis=1), [0.025, 0.975])
    return Difference(float(change.mean()), float(low), float(high))
