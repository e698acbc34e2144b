"""Means and intervals over seeds, against scipy's own tests and against loops that cannot be misread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from saerl_core.compare.estimate import area, estimate, first_reach, gain, reach
from saerl_core.compare.result import Reach

shares = st.floats(0, 1)
STEPS = [0, 10, 20, 30, 40]


@st.composite
def curves(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """(steps, accuracy), two evaluations or more."""
    steps = draw(st.lists(st.integers(0, 500), min_size=2, max_size=12, unique=True).map(sorted))
    return steps, draw(st.lists(shares, min_size=len(steps), max_size=len(steps)))


def reach_of(ours: list[list[float]], baseline: list[list[float]], curation_steps: float = 0.0,
             baseline_curation_steps: float = 0.0) -> Reach:
    return reach(STEPS, np.array(ours), np.array(baseline), curation_steps=curation_steps,
                 baseline_curation_steps=baseline_curation_steps)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(st.lists(shares, min_size=2, max_size=10))
def test_the_interval_of_a_mean_is_that_of_a_t_test(values: list[float]) -> None:
    found = estimate(values)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.seeds == len(values)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = estimate([0.4])
    assert (found.mean, found.low, found.high, found.seeds) == (0.4, None, None, 1)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(st.lists(st.tuples(shares, shares), min_size=2, max_size=10))
def test_a_gain_is_that_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, baseline = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    found = gain(ours, baseline)
    wanted = stats.ttest_rel(list(ours.values()), list(baseline.values())).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_a_gain_is_over_the_seeds_that_both_have_whatever_their_order() -> None:
    ours, baseline = {7: 0.5, 1: 0.4, 2: 0.9}, {1: 0.3, 7: 0.45, 5: 0.0}
    assert gain(ours, baseline) == estimate([0.4 - 0.3, 0.5 - 0.45])
    assert gain({1: 0.5}, {2: 0.5}) is None


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    luck = [0.0, 0.1, -0.1, 0.05, -0.05]
    baseline = dict(enumerate(0.40 + part for part in luck))
    ours = {seed: value + 0.03 + 0.001 * (-1) ** seed for seed, value in baseline.items()}
    paired = gain(ours, baseline)
    assert paired is not None
    assert paired.low is not None
    assert paired.low > 0.02
    single = estimate(list(ours.values()))
    assert single.low is not None
    assert single.low < 0.40


@given(curves())
def test_the_area_is_a_mean_over_trapezoids(curve: tuple[list[int], list[float]]) -> None:
    steps, accuracy = curve
    total = 0.0
    for place in range(1, len(steps)):
        total += (accuracy[place] + accuracy[place - 1]) / 2 * (steps[place] - steps[place - 1])
    assert area(steps, accuracy) == pytest.approx(total / (steps[-1] - steps[0]))


@given(curves(), shares)
@example(([0, 10, 20], [0.5, 0.1, 0.9]), 0.5)
@example(([0, 10, 20], [0.1, 0.5, 0.2]), 0.5)
@example(([0, 10, 20], [0.1, 0.1, 0.2]), 0.5)
def test_the_first_reach_is_where_the_line_between_two_evaluations_gets_there(
    curve: tuple[list[int], list[float]], target: float
) -> None:
    steps, accuracy = curve
    wanted = math.inf
    for place, value in enumerate(accuracy):
        if value >= target:
            wanted = float(steps[place])
            if place:
                before = accuracy[place - 1]
                wanted = steps[place - 1] + (target - before) / (value - before) * (steps[place] - steps[place - 1])
            break
    found = first_reach(np.array(steps, dtype=float), np.array([accuracy]), np.array([target]))
    assert found.tolist() == pytest.approx([wanted])


def test_each_curve_has_a_target_of_its_own() -> None:
    rising = np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.0, 0.1, 0.2]])
    found = first_reach(np.array([0.0, 10.0, 20.0]), rising, np.array([0.25, 0.75, 0.9]))
    assert found.tolist() == [5.0, 15.0, math.inf]


@given(st.lists(st.lists(shares, min_size=4, max_size=4), min_size=1, max_size=5), shares)
def test_an_arm_that_is_the_baseline_takes_all_of_its_steps(rest: list[list[float]], begin: float) -> None:
    curves = [[begin * 0.5, *values[:3], 0.5 + begin / 2 + values[3] / 100] for values in rest]
    found = reach_of(curves, curves, curation_steps=3.0, baseline_curation_steps=3.0)
    assert found.share == 1
    assert found.flops_share == 1
    few = len(curves) < 2
    assert (found.share_low, found.share_high) == ((None, None) if few else (1, 1))


def test_twice_as_fast_is_half_of_the_steps_and_curation_is_added_to_them() -> None:
    baseline = [[0.20, 0.25, 0.30, 0.35, 0.40]] * 3
    ours = [[0.20, 0.30, 0.40, 0.45, 0.50]] * 3
    found = reach_of(ours, baseline, curation_steps=5.0, baseline_curation_steps=1.0)
    assert (found.step, found.share) == (20, 0.5)
    assert found.flops_share == pytest.approx(25 / 41)
    assert (found.low, found.high, found.share_low, found.share_high) == (20, 20, 0.5, 0.5)


def test_a_target_that_is_missed_has_no_step_and_one_missed_in_some_draws_no_end() -> None:
    baseline = [[0.2, 0.25, 0.3, 0.35, 0.4]] * 4
    never = reach_of([[0.2, 0.2, 0.2, 0.2, 0.2]] * 4, baseline)
    assert (never.step, never.share, never.flops_share, never.low, never.share_high) == (None,) * 5
    fast, slow = [0.2, 0.3, 0.45, 0.5, 0.6], [0.2, 0.2, 0.2, 0.25, 0.3]
    sometimes = reach_of([fast, fast, slow, slow], baseline)
    assert sometimes.step is not None
    assert sometimes.low is not None
    assert sometimes.high is None
    assert sometimes.share_high is None


def test_a_baseline_that_ends_where_it_began_leaves_no_share() -> None:
    falling, rising = [0.4, 0.35, 0.3, 0.3, 0.2], [0.4, 0.5, 0.6, 0.7, 0.8]
    for ours in (falling, rising):
        found = reach_of([ours] * 3, [falling] * 3)
        assert found.step == 0
        assert (found.share, found.flops_share, found.share_low, found.share_high) == (None,) * 4


def test_the_interval_holds_the_estimate_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    rise = np.linspace(0, 1, len(STEPS))
    baseline = 0.2 + 0.2 * rise + rng.normal(0, 0.01, (5, len(STEPS)))
    ours = 0.2 + 0.3 * rise + rng.normal(0, 0.01, (6, len(STEPS)))
    found = reach(STEPS, ours, baseline, paired=False)
    assert found == reach(STEPS, ours, baseline, paired=False)
    assert found.share is not None
    assert found.share_low is not None
    assert found.share_high is not None
    assert found.share_low < found.share < found.share_high
