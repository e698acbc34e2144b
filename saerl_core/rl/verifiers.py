"""The verifier that a config names: one function for pass-rate labels, evaluation and the RL reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from saerl_core.config import PolicyConfig
from saerl_core.errors import ConfigError
from saerl_core.rl.verl_side.saerl_judge import load_verifier
from saerl_core.rl.verl_side.saerl_verifier import extract_answer, normalise_answer

_USER_FORMS = ("\\boxed{{{}}}", "#### {}", "{}")
_BUILT_IN_FORMS = _USER_FORMS[:1]
_TRIED_FIRST = 200
"""A user's function that accepts none of so many reference answers wants a form of its own."""


@dataclass(frozen=True)
class Verifier:
    """How an answer is judged."""

    score: Callable[[str, str], float]
    """(response, reference answer) → reward in [0, 1]"""
    identity: str
    """changes whenever the verdicts may: versions, and the hash of a user's source file"""
    forms: tuple[str, ...]
    """ways in which a response may state an answer; a reference must be accepted in one of them"""

    def accepts(self, answer: str) -> bool:
        """True where a response that states the reference itself is right."""
        return any(self.score(form.format(answer), answer) > 0 for form in self.forms)


def load(policy: PolicyConfig, base: Path) -> Verifier:
    """The verifier of `policy.verifier`.

    Args:
        policy: Names it.
        base: Folder of the config: a user's module may lie there.

    Raises:
        ConfigError: it cannot be imported, or is no function of (response, answer). One line.
    """
    try:
        score, identity = load_verifier(policy.verifier, str(base))
    except ValueError as error:
        raise ConfigError(f"policy.verifier: {' '.join(str(error).split())}") from error
    imported = policy.verifier.startswith("import:")
    return Verifier(_blaming_config(score, policy.verifier) if imported else score, identity,
                    _USER_FORMS if imported else _BUILT_IN_FORMS)


def unverifiable(answers: list[str], verifier: Verifier) -> tuple[np.ndarray, str]:
    """Reference answers that no response can meet: the verifier does not accept the reference as its own answer.

    A prompt with such an answer is not hard, it only never earns a reward. Each distinct answer is judged once.

    Args:
        answers: n reference answers.
        verifier: A user's function may want answers in a form that is not known here. If it accepts none of the first
            answers in any form that is tried, nothing is marked.

    Returns:
        bool [n], and a note where nothing could be said.
    """
    distinct = list(dict.fromkeys(answers))
    if len(verifier.forms) > 1 and not any(map(verifier.accepts, distinct[:_TRIED_FIRST])):
        return np.zeros(len(answers), dtype=bool), (
            "policy.verifier accepts no reference answer as \\boxed{...}, after #### or bare: it wants a form of its "
            "own, so unverifiable answers cannot be told")
    refused = {answer for answer in distinct if not verifier.accepts(answer)}
    return np.array([answer in refused for answer in answers], dtype=bool), ""


def mark_unverifiable(table: pl.DataFrame, verifier: Verifier) -> tuple[pl.DataFrame, str]:
    """Mark usable rows whose reference answer the verifier does not accept as its own answer.

    Returns:
        The table, and a note where the verifier cannot be asked.
    """
    refused, note = unverifiable(table["answer"].to_list(), verifier)
    reason = pl.when(pl.col("drop_reason").is_null() & pl.Series(refused, dtype=pl.Boolean)).then(
        pl.lit("unverifiable_answer")).otherwise(pl.col("drop_reason"))
    return table.with_columns(drop_reason=reason), note


def stated_answer(response: str) -> str | None:
    """The final answer of a response in its one spelling; None where it states none."""
    stated = extract_answer(response)
    return normalise_answer(stated) if stated else None


def _blaming_config(score: Callable[[str, str], float], name: str) -> Callable[[str, str], float]:
    """A user's function, whose failures are told as the config's."""
    def judged(response: str, answer: str) -> float:
        try:
            return score(response, answer)
        except Exception as error:  # a user's function may raise anything
            raise ConfigError(f"policy.verifier: {name} failed on the answer {answer[:60]!r}: "
                              f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error

    return judged
