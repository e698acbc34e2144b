from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saerl_core.compare.arms import BUILT_IN, arm_config, arm_fields, check_arms, describe, random_filter_of, seeds_of
from saerl_core.compare.rounds import round_config, round_steps
from saerl_core.config import CompareConfig, RunConfig, build_config
from saerl_core.errors import ConfigError


def make(arms: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    tree = {
        "name": "run",
        "data": {"path": "rows.jsonl", "columns": {"prompt": "problem", "answer": "answer", "level": "level"},
                 "heldout": {"path": "heldout.jsonl"}},
        "features": {"model": "m", "sae": "s"},
        "policy": {"model": "m"},
        "schedule": {"steps": 40, "batch_size": 8, "max_difficulty": 0.9},
        "labels": {"count": 50},
        **changes,
    }
    if arms is not None:
        tree["compare"] = {"arms": {"vanilla": {}, **arms}}
    return build_config(tree, base=Path())


def comparison(arms: dict[str, Any]) -> CompareConfig:
    return make(arms).compare


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_arm_is_a_valid_config_and_changes_only_what_it_says(name: str) -> None:
    config = make({name: {}})
    fields = {**arm_fields(config.compare, name), "quality.drop_share": 0.0}
    if name == "random-projection":
        fields["features.encoder_seed"] = 3
    changed = arm_config(config, name, 3, 0.0 if random_filter_of(config.compare, name) else None)
    as_it_stands = arm_config(make({"plain": {}}), "plain", 3)
    for section in ("hygiene", "features", "clusters", "labels", "difficulty", "quality", "coverage", "schedule"):
        ours, theirs = getattr(changed, section).model_dump(), getattr(as_it_stands, section).model_dump()
        differing = {f"{section}.{field}" for field in ours if ours[field] != theirs[field]}
        assert differing <= fields.keys()
    for section in ("data", "policy", "train", "evaluation"):
        assert getattr(changed, section) == getattr(as_it_stands, section)


def test_a_seed_draws_everything_anew_and_evaluation_is_the_same_for_all() -> None:
    config = arm_config(make({"saerl": {}}, evaluation={"prompts": 70, "samples": 3}), "saerl", 5)
    drawn = (config.clusters, config.labels, config.quality, config.schedule, config.train)
    assert {section.seed for section in drawn} == {5}
    assert config.evaluation.seed == 0
    assert (config.train.test_prompts, config.train.test_samples, config.train.test_every) == (70, 3, 10)
    assert config.train.test_greedy
    assert config.train.test_first


def test_a_small_pool_is_gone_through_again_until_the_budget_is_spent() -> None:
    assert arm_config(make({"saerl": {}}), "saerl", 0).schedule.epochs >= 40


def test_an_arm_is_like_another_one_with_its_own_fields_on_top() -> None:
    arms = comparison({"mine": {"like": "no-quality", "set": {"schedule.min_difficulty": 0.5}},
                       "deeper": {"like": "mine", "set": {"quality.method": "ridge"}}})
    assert arm_fields(arms, "mine") == {**BUILT_IN["no-quality"][1], "schedule.min_difficulty": 0.5}
    assert arm_fields(arms, "deeper") == {**arm_fields(arms, "mine"), "quality.method": "ridge"}
    assert "schedule.min_difficulty: 0.5" in describe("mine", arms.arms["mine"])


def test_a_built_in_arm_can_be_given_further_fields() -> None:
    arms = comparison({"length": {"set": {"schedule.min_difficulty": 0.5}}})
    assert arm_fields(arms, "length") == {**BUILT_IN["length"][1], "schedule.min_difficulty": 0.5}


@pytest.mark.parametrize(("arms", "words"), [
    ({"a": {"like": "b"}, "b": {"like": "a"}}, "round in a circle"),
    ({"a": {"like": "nobody"}}, "no arm 'nobody'; built in: vanilla"),
    ({"a": {"set": {"train.learning_rate": 1.0}}}, "train.learning_rate: an arm changes what is trained on"),
    ({"a": {"set": {"schedule.batch_size": 4}}}, "schedule.batch_size"),
    ({"a": {"set": {"schedule.steps": 4}}}, "schedule.steps"),
    ({"a": {"set": {"policy.model": "other"}}}, "policy.model"),
    ({"a": {"set": {"schedule": {}}}}, "an arm changes what is trained on"),
    ({"a": {"set": {"schedule.fadng": 0.5}}}, "unknown field schedule.fadng"),
    ({"a": {"set": {"schedule.fading": 5}}}, "compare.arms.a: schedule.fading = 5"),
])
def test_an_arm_that_cannot_be_is_refused_by_name(arms: dict[str, Any], words: str) -> None:
    config = make(arms)
    with pytest.raises(ConfigError, match=words):
        arm_config(config, "a", 0)


def test_a_comparison_needs_a_budget_a_baseline_and_different_seeds() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.steps is not set"):
        arm_config(make({"saerl": {}}, schedule={"batch_size": 8}), "saerl", 0)
    with pytest.raises(ConfigError, match=r"compare\.baseline is 'vanilla'"):
        make(compare={"arms": {"saerl": {}}})
    with pytest.raises(ConfigError, match="repeat themselves"):
        make(compare={"seeds": [1, 1]})
    with pytest.raises(ConfigError, match=r"unknown key 'compare\.arms\.saerl\.sed'; did you mean 'seeds'"):
        make({"saerl": {"sed": [1]}})


def test_seeds_are_the_arms_own_or_those_of_all() -> None:
    arms = comparison({"saerl": {}, "length": {"seeds": [7]}})
    assert (seeds_of(arms, "saerl"), seeds_of(arms, "length")) == ((0, 1, 2), (7,))


def test_a_random_filter_drops_as_much_as_the_probe_of_saerl_or_of_the_arm_that_it_names() -> None:
    arms = comparison({"random-filter": {}, "mine": {"like": "random-filter", "drop_like": "dense"},
                       "fixed": {"like": "random-filter", "set": {"quality.drop_share": 0.1}}, "saerl": {}})
    assert [random_filter_of(arms, name) for name in arms.arms] == [None, "saerl", "dense", None, None]
    config = make({"random-filter": {}})
    assert arm_config(config, "random-filter", 0, drop_share=0.07).quality.drop_share == 0.07


@pytest.mark.parametrize(("steps", "every", "of", "expected"), [
    (40, 10, 2, [20, 20]), (200, 20, 3, [60, 60, 80]), (45, 10, 2, [20, 25]), (7, 10, 1, [7]),
])
def test_a_round_ends_at_an_evaluation(steps: int, every: int, of: int, expected: list[int]) -> None:
    assert round_steps(steps, every, of) == expected


def test_more_rounds_than_evaluations_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 rounds of 40 steps"):
        check_arms(make({"saerl": {"rounds": 5}}))


def test_rounds_share_the_budget_and_each_reads_and_trains_the_policy_so_far() -> None:
    config = arm_config(make({"saerl": {}}), "saerl", 2)
    rounds = [round_config(config, number, 3, Path("/so-far") if number else None) for number in range(3)]
    assert [part.schedule.steps for part in rounds] == [10, 10, 20]
    assert [(part.features.model, part.policy.model) for part in rounds] == [("m", "m")] + [("/so-far", "/so-far")] * 2
    assert len({part.schedule.seed for part in rounds}) == 3
    other_reader = config.model_copy(update={"features": config.features.model_copy(update={"model": "reader"})})
    assert round_config(other_reader, 1, 3, Path("/so-far")).features.model == "reader"
    assert round_config(config, 0, 1, None) == config


def test_vanilla_keeps_nothing_of_what_the_config_does() -> None:
    config = make({}, hygiene={"sae_similarity": 0.9}, schedule={
        "steps": 40, "batch_size": 8, "min_difficulty": 0.2, "max_difficulty": 0.9, "order": "easy_first",
        "fading": 0.5, "stages": 2})
    vanilla = arm_config(config, "vanilla", 0)
    assert vanilla.hygiene.sae_similarity is None
    kept = vanilla.schedule.model_dump(include={"min_difficulty", "max_difficulty", "order", "fading", "stages"})
    assert kept == {"min_difficulty": 0, "max_difficulty": 1, "order": "random", "fading": 0, "stages": 1}


def test_arms_read_the_columns_of_the_configs_preset() -> None:
    data = {"path": "rows.jsonl", "preset": "deepmath", "heldout": {"path": "heldout.jsonl", "preset": "gsm8k"}}
    config = make({"saerl": {}}, data=data)
    assert arm_config(config, "saerl", 0).data == config.data


@pytest.mark.parametrize(("arm", "complaint"), [
    ({"like": "random-filter", "drop_like": "mine"}, r"compare\.arms: no arm 'mine'"),
    ({"drop_like": "saerl"}, r"compare\.arms\.a\.drop_like = 'saerl': this arm drops nothing by lot"),
])
def test_an_arm_can_only_drop_as_much_as_an_arm_that_there_is(arm: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_arms(make({"a": arm}))
