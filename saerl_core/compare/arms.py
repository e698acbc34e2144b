"""The arms of a comparison: what each changes in the config, and that it changes nothing else.

An arm is a list of fields and values, so `saerl run --set FIELD=VALUE ...` repeats any of them by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saerl_core.compare.rounds import round_config
from saerl_core.config import ArmConfig, CompareConfig, RunConfig, build_config
from saerl_core.errors import ConfigError

_UNMIXED = {"schedule.clusters_per_batch": None, "schedule.tail_mix": 0.0}
_SHUFFLED = {**_UNMIXED, "schedule.order": "random", "schedule.fading": 0.0, "schedule.stages": 1}
_UNORDERED = {"difficulty.method": "none", "schedule.max_difficulty": 1.0, "schedule.min_difficulty": 0.0}
_UNFILTERED = {"quality.method": "none", "quality.suspect_answers": 0.0}
_UNLABELLED = {"labels.source": "none"}

BUILT_IN: dict[str, tuple[str, dict[str, Any]]] = {
    "vanilla": ("plain GRPO: everything, in random order",
                {**_SHUFFLED, **_UNORDERED, **_UNFILTERED, **_UNLABELLED,
                 "hygiene.near_duplicate_overlap": None, "hygiene.sae_similarity": None, "coverage.budget": None}),
    "saerl": ("the config as it stands", {}),
    "diversity": ("clusters decide which prompts share a batch, and nothing else is done",
                  {**_UNORDERED, **_UNFILTERED, **_UNLABELLED}),
    "difficulty": ("the band and the order of difficulty, and nothing else", {**_UNMIXED, **_UNFILTERED}),
    "quality": ("the quality probe filters, and nothing else is done", {**_SHUFFLED, **_UNORDERED, **_UNLABELLED}),
    "no-diversity": ("all but the clusters", _UNMIXED),
    "no-difficulty": ("all but the order and the band", {**_UNORDERED, **_UNLABELLED}),
    "no-quality": ("all but the filter", _UNFILTERED),
    "easy-first": ("all, from easy to hard as in the paper", {"schedule.order": "easy_first"}),
    "length": ("all, with the prompt's length for its difficulty",
               {**_UNLABELLED, "difficulty.method": "length"}),
    "nll": ("all, with the policy's surprise at the prompt for its difficulty",
            {**_UNLABELLED, "difficulty.method": "nll"}),
    "level": ("all, with the data set's own level for its difficulty",
              {**_UNLABELLED, "difficulty.method": "level"}),
    "dense": ("all, on the residual stream itself in place of SAE features",
              {"features.encoder": "residual", "clusters.weights": "deviation", "hygiene.sae_similarity": None}),
    "random-projection": ("all, on a random dictionary in place of the SAE's", {"features.encoder": "random"}),
    "shuffled-labels": ("all, with labels that belong to other prompts",
                        {"labels.shuffle": True, "quality.shuffle_labels": True}),
    "random-filter": ("all, but as many prompts are dropped by lot as the probe would drop",
                      {"quality.method": "random"}),
}
"""Name → what it is, and the fields that it changes. The arms of one part alone and the controls keep the config's
settings of all that they do not mention. Where nothing is labelled, difficulty is a rank, and the config's band is a
share of the prompts."""
CONTROLS = ("length", "nll", "level", "dense", "random-projection", "shuffled-labels", "random-filter")
"""The built-in arms that put a cheaper signal, or none, in the place of one of the SAE's."""

_MAY_CHANGE = ("hygiene", "features", "clusters", "labels", "difficulty", "quality", "coverage", "schedule")
_MAY_NOT = ("schedule.batch_size", "schedule.steps", "schedule.epochs")
_SEEDED = ("clusters", "labels", "quality", "schedule", "train")


def arm_fields(comparison: CompareConfig, name: str) -> dict[str, Any]:
    """The fields that an arm changes, those of the arm it is like included.

    Raises:
        ConfigError: an arm is like one that does not exist, or like itself in the end; or it changes what has to be the
            same for all arms.
    """
    fields: dict[str, Any] = {}
    seen: list[str] = []
    begin: str | None = name
    while begin is not None:
        if begin in seen:
            raise ConfigError(f"compare.arms.{name}.like: {' → '.join([*seen, begin])} goes round in a circle")
        seen.append(begin)
        arm = comparison.arms.get(begin)
        built_in = BUILT_IN.get(begin)
        if arm is None and built_in is None:
            asked = f"compare.arms.{seen[-2]}.like" if len(seen) > 1 else "compare.arms"
            raise ConfigError(f"{asked}: no arm {begin!r}; built in: {', '.join(BUILT_IN)}")
        own = dict(arm.set) if arm else {}
        if built_in and (arm is None or arm.like is None):
            own = {**built_in[1], **own}
        fields = {**own, **fields}
        begin = arm.like if arm else None
    for field in fields:
        section, dot, _ = field.partition(".")
        if not dot or section not in _MAY_CHANGE or field in _MAY_NOT:
            raise ConfigError(f"compare.arms.{name}.set: {field}: an arm changes what is trained on, not how it is "
                              f"trained: fields of {', '.join(_MAY_CHANGE)}, but for {' and '.join(_MAY_NOT)}")
    return fields


def arm_config(config: RunConfig, name: str, seed: int, drop_share: float | None = None) -> RunConfig:
    """The config of one arm with one seed: its fields changed, everything drawn anew, the same evaluation for all.

    Args:
        config: With a section `compare`; `schedule.steps` is the budget of every arm, and a pool that is smaller is
            gone through again.
        name: The arm.
        seed: Takes the place of the seeds of clusters, labels, quality, schedule and training, and of a random encoder.
        drop_share: What a random filter drops (`random_filter_of`).

    Raises:
        ConfigError: see `arm_fields`; there is no budget; or the changed fields are not valid together.
    """
    if config.schedule.steps is None:
        raise ConfigError("schedule.steps is not set: a comparison gives every arm the same number of steps")
    comparison = config.compare
    tree = config.model_dump(mode="json", exclude={"compare"})
    for field, value in arm_fields(comparison, name).items():
        _set(tree, field, value, name)
    if drop_share is not None:
        tree["quality"]["drop_share"] = drop_share
    for section in _SEEDED:
        tree[section]["seed"] = seed
    if tree["features"]["encoder"] == "random":
        tree["features"]["encoder_seed"] = seed
    tree["name"] = f"{config.name}-{name}-{seed}"[:64]
    tree["schedule"]["epochs"] = max(tree["schedule"]["epochs"], config.schedule.steps)
    tree["train"] |= {
        "test_every": comparison.evaluate_every,
        "test_prompts": config.evaluation.prompts,
        "test_samples": config.evaluation.samples,
        "test_greedy": True,
        "test_first": True,
    }
    return build_config(tree, base=Path(config.base), where=f"compare.arms.{name}")


def check_arms(config: RunConfig) -> None:
    """Make the config of every arm with every seed, as the comparison will.

    Raises:
        ConfigError: see `arm_config`; or an arm's `drop_like` is no arm, or says nothing.
    """
    for name, arm in config.compare.arms.items():
        probed = random_filter_of(config.compare, name)
        if probed is not None:
            arm_fields(config.compare, probed)
        elif arm.drop_like:
            raise ConfigError(f"compare.arms.{name}.drop_like = {arm.drop_like!r}: this arm drops nothing by lot, or "
                              "says itself how much (quality.drop_share)")
        for seed in seeds_of(config.compare, name):
            made = arm_config(config, name, seed, 0.0 if probed else None)
            round_config(made, 0, arm.rounds, None)


def seeds_of(comparison: CompareConfig, name: str) -> tuple[int, ...]:
    """The seeds that an arm is trained with."""
    return comparison.arms[name].seeds or comparison.seeds


def random_filter_of(comparison: CompareConfig, name: str) -> str | None:
    """The arm whose probe tells this arm's random filter how much to drop; None where it has none, or a share of its
    own."""
    fields, arm = arm_fields(comparison, name), comparison.arms[name]
    if fields.get("quality.method") != "random" or fields.get("quality.drop_share") is not None:
        return None
    return arm.drop_like or "saerl"


def describe(name: str, arm: ArmConfig) -> str:
    """What an arm is, in a few words."""
    known = BUILT_IN[name][0] if name in BUILT_IN and arm.like is None else f"like {arm.like}" if arm.like else ""
    changed = ", ".join(f"{field}: {json.dumps(value)}" for field, value in arm.set.items())
    again = f"{arm.rounds} rounds" if arm.rounds > 1 else ""
    return "; ".join(filter(None, (known, changed, again))) or "the config as it stands"


def _set(tree: dict[str, Any], field: str, value: Any, arm: str) -> None:
    *parents, leaf = field.split(".")
    for parent in parents:
        tree = tree[parent] if isinstance(tree.get(parent), dict) else {}
    if leaf not in tree:
        raise ConfigError(f"compare.arms.{arm}.set: unknown field {field}; `saerl fields {parents[0]}` lists them")
    tree[leaf] = value
