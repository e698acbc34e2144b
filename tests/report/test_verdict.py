from __future__ import annotations

import pytest

from saerl_core.compare.result import Comparison, Estimate
from saerl_core.report.markup import percent, signed
from saerl_core.report.verdict import lead, main_arm, points, warnings
from tests.report import arms


@pytest.fixture(scope="module")
def two() -> Comparison:
    return arms.make({"vanilla": range(5), "saerl": range(5)})


def with_gain(comparison: Comparison, low: float, high: float) -> Comparison:
    """The same, but for the gain of its second arm."""
    baseline, arm, *others = comparison.arms
    found = Estimate(mean=(low + high) / 2, low=low, high=high, seeds=5)
    return comparison.model_copy(update={"arms": [baseline, arm.model_copy(update={"gain": found}), *others]})


def test_the_lead_says_what_came_out_with_its_intervals(two: Comparison) -> None:
    vanilla, saerl = two.arms
    gain, reach = saerl.gain, saerl.reach
    assert gain is not None
    assert gain.low is not None
    assert gain.high is not None
    assert reach.share is not None
    assert reach.share_low is not None
    assert reach.share_high is not None
    assert reach.flops_share is not None
    assert lead(two) == (
        f"saerl ends at {percent(saerl.final.mean)} against {percent(vanilla.final.mean)} for vanilla: "
        f"{signed(100 * gain.mean, 1)} points (95% interval {signed(100 * gain.low, 1)} to "
        f"{signed(100 * gain.high, 1)}, 5 pairs), and reaches vanilla's final accuracy after "
        f"{percent(reach.share, 0)} of its steps ({percent(reach.share_low, 0)} to {percent(reach.share_high, 0)}) and "
        f"{percent(reach.flops_share, 0)} of its FLOPs, curation counted.")
    assert not warnings(two)


def test_a_gain_that_may_be_chance_is_called_so(two: Comparison) -> None:
    assert lead(with_gain(two, -0.01, 0.03)).endswith("The interval of the gain holds zero, so it may be chance.")
    assert lead(with_gain(two, -0.04, -0.01)).endswith("It is worse, not better.")


def test_controls_that_do_as_well_are_told_apart_from_parts_that_do() -> None:
    speed = {"vanilla": 1.0, "saerl": 3.0, "random-filter": 3.0, "shuffled-labels": 1.0, "quality": 3.0}
    controls, others = warnings(arms.make(dict.fromkeys(speed, range(5)), speed=speed))
    assert controls.startswith("Controls that saerl does not clearly beat")
    assert "random-filter " in controls
    assert "shuffled-labels" not in controls
    assert others.startswith("Other arms that saerl does not clearly beat")
    assert "quality " in others


def test_a_control_that_is_ahead_is_told_though_its_interval_leaves_zero_out() -> None:
    speed = {"vanilla": 1.0, "saerl": 1.2, "dense": 6.0}
    told, = warnings(arms.make(dict.fromkeys(speed, range(5)), speed=speed))
    assert "is ahead: dense −" in told


def test_one_seed_has_no_interval() -> None:
    made = arms.make({"vanilla": [3], "saerl": [3]})
    assert "points (one pair, no interval), and reaches" in lead(made)
    assert " to " not in lead(made)
    assert warnings(made) == ["One seed only: vanilla, saerl. There is no interval, and a difference may be chance."]


def test_a_bootstrap_over_few_seeds_is_called_narrow(two: Comparison) -> None:
    made = arms.make({"vanilla": range(3), "saerl": range(3)})
    assert any("rests on 3 seeds: a bootstrap over so few is too narrow" in told for told in warnings(made))
    assert not any("too narrow" in told for told in warnings(two))


def test_seeds_that_are_not_shared_are_told() -> None:
    made = arms.make({"vanilla": range(4), "saerl": [2, 3, 9]})
    assert ", 2 pairs)" in lead(made)
    assert any(told.startswith("Not all arms have the same seeds.") for told in warnings(made))
    assert "there is no paired gain" in lead(arms.make({"vanilla": [0, 1], "saerl": [2, 3]}))


def test_a_target_that_is_never_reached_is_told() -> None:
    made = arms.make({"vanilla": range(3), "saerl": range(3)}, speed={"vanilla": 2.0, "saerl": 0.5})
    assert "does not reach vanilla's final accuracy within 200 steps. It is worse, not better." in lead(made)


def test_a_baseline_that_learns_nothing_leaves_no_target() -> None:
    made = arms.make({"vanilla": [0, 1], "saerl": [0, 1]}, speed={"vanilla": -0.4, "saerl": 1.0})
    assert "and need not be trained to reach what vanilla ends with" in lead(made)
    assert any(told.startswith("vanilla does not end above where it began") for told in warnings(made))


def test_the_page_is_about_saerl_or_else_the_first_arm_that_is_no_baseline() -> None:
    def about(*names: str) -> str:
        return main_arm(arms.make(dict.fromkeys(names, range(1)))).name

    assert about("vanilla", "length", "saerl") == "saerl"
    assert about("vanilla", "mine", "length") == "mine"
    assert about("saerl", "no-quality") == "no-quality"
    assert about("vanilla") == "vanilla"


def test_points_are_signed_and_keep_a_minus_that_rounding_hides() -> None:
    assert points(Estimate(mean=0.029, low=-0.0004, high=0.054, seeds=3)) == "+2.9 (−0.0 to +5.4)"
    assert points(Estimate(mean=-0.01, low=None, high=None, seeds=1)) == "−1.0"
    assert points(None) == "–"
