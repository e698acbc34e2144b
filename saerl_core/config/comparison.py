"""Section `compare`: which ways of curating are trained side by side."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from saerl_core.config.section import Count, Section, Seed

ArmName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]


class ArmConfig(Section):
    """One way of curating: the config as it stands, with some fields changed."""

    like: ArmName | None = None
    """Begin with the fields of this arm, built-in or of yours. Default: with those of the built-in arm of this name, if
    there is one (`saerl compare --help` lists them), else with the config as it stands."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields to change: `{schedule.fading: 0.5, difficulty.method: length}`. What is trained on may change, not how it
    is trained: sections hygiene, features, clusters, labels, difficulty, quality, coverage and schedule (but for
    schedule.batch_size and schedule.steps)."""
    drop_like: ArmName | None = None
    """With `quality.method: random`: drop as many prompts as this arm's probe drops, with the same seed."""
    rounds: Count = 1
    """Train in this many parts, and curate anew before each: the policy so far reads the prompts, answers for the
    labels, and is trained further with a fresh optimiser."""
    seeds: Seeds | None = None
    """Seeds of this arm. Default: `compare.seeds`."""


class CompareConfig(Section):
    """The same policy, steps, batch size, learning rate and evaluation for every arm; several seeds of each."""

    arms: Annotated[dict[ArmName, ArmConfig], Field(min_length=1)] = Field(
        default_factory=lambda: {"vanilla": ArmConfig(), "saerl": ArmConfig()})
    """The arms, by name."""
    baseline: ArmName = "vanilla"
    """The arm that the others are measured against."""
    seeds: Seeds = (0, 1, 2)
    """Each stands for a draw of everything that is drawn: order, labels, clusters, damaged copies, answers. The same
    seed in two arms makes a pair."""
    evaluate_every: Count = 10
    """Steps between evaluations on the first `evaluation.prompts` held-out prompts, each answered `evaluation.samples`
    times at temperature 1, and once greedily."""

    @model_validator(mode="after")
    def _arms_are_there(self) -> Self:
        if self.baseline not in self.arms:
            raise ValueError(f"compare.baseline is {self.baseline!r}, but compare.arms has none of this name")
        for name, arm in self.arms.items():
            for seeds in (self.seeds, arm.seeds or ()):
                if len(set(seeds)) < len(seeds):
                    raise ValueError(f"compare: the seeds {list(seeds)} of arm {name!r} repeat themselves")
        return self
