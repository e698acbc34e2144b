"""What a comparison gives, as plain data: the JSON, and what the report page is drawn from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Plain):
    """A mean over seeds with its 95% interval."""

    mean: float
    low: float | None
    """None with a single seed: there is no interval."""
    high: float | None
    seeds: int


class Reach(_Plain):
    """When an arm's mean accuracy first reached the target."""

    step: float | None
    """Interpolated between evaluations; None: never."""
    low: float | None
    high: float | None
    """95% bootstrap interval over seeds; None: it does not end within the budget."""
    share: float | None
    """Of the baseline's steps to the same target: below 1 is faster. None: never, or the baseline needs no steps."""
    share_low: float | None
    share_high: float | None
    flops_share: float | None
    """Of the baseline's FLOPs to the same target, curation included."""


class Curve(_Plain):
    """Accuracy at each evaluation."""

    steps: list[int]
    sampled: list[Estimate]
    greedy: list[Estimate]


class Cost(_Plain):
    """Floating-point operations, counted from tokens and parameters, not measured."""

    curation: float
    """Reading the prompts and answering for the labels, as far as this arm needs either."""
    training: float
    """Sampling and updating, over all steps."""
    curation_steps: float
    """What curation costs, in steps of the baseline's training."""


class Batch(_Plain):
    """What an arm trained on at one step, mean over seeds."""

    step: int
    difficulty: float | None
    """as predicted"""
    level: float | None
    """as the data set says"""
    reward: float
    spread: float
    """share of the step's prompts with both right and wrong answers: the others have no advantage"""
    clusters: float
    """different clusters in the batch"""


class Run(_Plain):
    """One arm with one seed."""

    seed: int
    manifests: list[str]
    """one a round"""
    runs: list[str]
    """folders of the training, one a round"""
    final_sampled: float
    final_greedy: float
    area: float
    kept: int
    """different prompts that were trained on"""
    dropped: dict[str, int]


class Arm(_Plain):
    """One way of curating, over its seeds."""

    name: str
    about: str
    fields: dict[str, str]
    """what it changes in the config, values as in YAML"""
    curve: Curve
    groups: dict[str, dict[str, Estimate]]
    """`level` and `subject`, where the held-out set has them: group → final sampled accuracy"""
    final: Estimate
    final_greedy: Estimate
    area: Estimate
    """mean accuracy over the whole training: the area under the curve over its length"""
    gain: Estimate | None
    """final sampled accuracy over the baseline's, paired by seed; None for the baseline"""
    gain_greedy: Estimate | None
    gain_area: Estimate | None
    gain_by_step: list[Estimate]
    """the same at each evaluation"""
    reach: Reach
    cost: Cost
    batches: list[Batch]
    runs: list[Run]


class Comparison(_Plain):
    """All arms, the baseline first."""

    name: str
    baseline: str
    steps: int
    batch_size: int
    rollouts: int
    evaluate_every: int
    problems: int
    samples: int
    target: float
    """the baseline's mean final sampled accuracy"""
    arms: list[Arm]
