"""Rounds: curate anew with the policy so far, so that what is known of the prompts does not grow stale."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from saerl_core.config import RunConfig
from saerl_core.errors import ConfigError

_SEEDS_APART = 100_003
"""Between rounds: a prime, so that the rounds of one seed are not those of another."""


def round_steps(steps: int, every: int, of: int) -> list[int]:
    """Steps of each round, about as many in each. A round ends at an evaluation: curves can be set side by side.

    Args:
        steps: The budget.
        every: Steps between evaluations.
        of: Rounds.

    Raises:
        ConfigError: there are more rounds than evaluations.
    """
    evaluations = -(-steps // every)
    if of > evaluations:
        raise ConfigError(f"{of} rounds of {steps} steps, but accuracy is measured only {evaluations} times: set "
                          "compare.evaluate_every lower, or ask for fewer rounds")
    ends = [min(evaluations * number // of * every, steps) for number in range(of + 1)]
    return [end - begin for begin, end in pairwise(ends)]


def round_config(config: RunConfig, number: int, of: int, checkpoint: Path | None) -> RunConfig:
    """The config of one round.

    Args:
        config: The arm's, all its steps in it.
        number: The round, from 0.
        of: How many rounds there are.
        checkpoint: The policy so far, from the second round on. It reads the prompts too, if the reader was the policy.
    """
    if of == 1:
        return config
    assert config.schedule.steps is not None, "arms have a budget"
    steps = round_steps(config.schedule.steps, config.train.test_every, of)[number]
    seed = config.schedule.seed + number * _SEEDS_APART
    changes = {
        "name": f"{config.name}-{number}",
        "schedule": config.schedule.model_copy(update={"steps": steps, "epochs": steps, "seed": seed}),
        "train": config.train.model_copy(update={"seed": seed}),
    }
    if checkpoint is not None:
        changes["policy"] = config.policy.model_copy(update={"model": str(checkpoint)})
        if config.features.model == config.policy.model:
            changes["features"] = config.features.model_copy(update={"model": str(checkpoint)})
    return config.model_copy(update=changes)
