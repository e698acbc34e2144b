from __future__ import annotations

import re
import subprocess
import sys

import pytest

from saerl_core.compare.result import Comparison, Estimate
from saerl_core.report.comparison import comparison_markdown, comparison_page
from saerl_core.report.markdown import SIZE
from saerl_core.report.markup import percent, signed
from tests.report import arms
from tests.report.test_page import check

IMPORT = """
import sys
import saerl_core.report.comparison
assert "matplotlib" not in sys.modules, "importing the page must stay cheap"
"""


@pytest.fixture(scope="module")
def two() -> Comparison:
    return arms.make({"vanilla": range(5), "saerl": range(5)})


@pytest.fixture(scope="module")
def fifteen() -> Comparison:
    return arms.make(arms.all_arms(0, 1, 2))


def read(comparison: Comparison) -> str:
    """The text of the page, which has to be sound."""
    page = comparison_page(comparison)
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", page)
    return " ".join(check(page).text.split())


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
    assert reach.flops_share is not None
    words = read(two)
    assert (f"saerl ends at {percent(saerl.final.mean)} against {percent(vanilla.final.mean)} for vanilla: "
            f"{signed(100 * gain.mean, 1)} points (95% interval {signed(100 * gain.low, 1)} to "
            f"{signed(100 * gain.high, 1)}, 5 pairs), and reaches vanilla's final accuracy after "
            f"{percent(reach.share, 0)} of its steps (") in words
    assert f"{percent(reach.flops_share, 0)} of its FLOPs with curation counted." in words
    assert "Worth knowing" not in words


def test_a_gain_that_may_be_chance_is_called_so(two: Comparison) -> None:
    assert "may be chance" not in read(two)
    assert "The interval of the gain holds zero, so it may be chance." in read(with_gain(two, -0.01, 0.03))
    assert "It is worse, not better." in read(with_gain(two, -0.04, -0.01))


def test_the_table_has_every_figure_of_every_arm(two: Comparison) -> None:
    words = read(two)
    for arm in two.arms:
        for found in (arm.final, arm.final_greedy, arm.area):
            assert found.low is not None
            assert found.high is not None
            assert f"{percent(found.mean)}{percent(found.low)} to {percent(found.high)}" in words
        for run in arm.runs:
            assert f"{arm.name}{run.seed}{percent(run.final_sampled)}{percent(run.final_greedy)}" in words
    assert "features.encoder" not in words
    assert "difficulty.methodnone" in words


def test_all_arms_have_their_place(fifteen: Comparison) -> None:
    page = comparison_page(fifteen)
    reading = check(page)
    assert reading.tags.count("svg") == 8
    assert len(page) < 1_000_000
    for arm in fifteen.arms:
        assert reading.text.count(arm.name) >= 4
        assert arm.about in reading.text


def test_controls_that_do_as_well_are_told() -> None:
    speed = {"vanilla": 1.0, "saerl": 3.0, "random-filter": 3.0, "shuffled-labels": 1.0, "quality": 3.0}
    words = read(arms.make(dict.fromkeys(speed, range(5)), speed=speed))
    controls = words[words.index("Controls that saerl does not clearly beat"):]
    assert controls.index("random-filter ") < controls.index("Other arms that saerl does not clearly beat")
    assert "shuffled-labels " not in controls[:controls.index("Accuracy by step")]
    assert "quality " in controls[controls.index("Other arms"):controls.index("Accuracy by step")]


def test_one_seed_has_no_interval_and_the_page_says_so() -> None:
    words = read(arms.make({"vanilla": [3], "saerl": [3], "length": [3]}))
    assert "points (one pair, no interval)" in words
    assert "One seed only: vanilla, saerl, length. There is no interval, and a difference may be chance." in words
    assert not re.search(r"saerl ends[^.]*%[^.]* to [^.]*%", words)


def test_one_arm_alone_is_shown() -> None:
    words = read(arms.make({"vanilla": [0, 1]}, levels=False))
    assert "No other arm is there to compare it with." in words
    assert "Gain over" not in words
    assert "By level" not in words


def test_arms_with_other_seeds_are_compared_over_those_they_share() -> None:
    words = read(arms.make({"vanilla": range(4), "saerl": [2, 3, 9]}))
    assert ", 2 pairs)" in words
    assert "Not all arms have the same seeds." in words
    assert "there is no paired gain" in read(arms.make({"vanilla": [0, 1], "saerl": [2, 3]}))


def test_a_target_that_is_never_reached_is_told() -> None:
    words = read(arms.make({"vanilla": range(3), "saerl": range(3)}, speed={"vanilla": 2.0, "saerl": 0.5}))
    assert "does not reach vanilla's final accuracy within 200 steps" in words
    assert "never" in words


def test_a_baseline_that_learns_nothing_makes_no_target() -> None:
    words = read(arms.make({"vanilla": [0, 1], "saerl": [0, 1]}, speed={"vanilla": -0.4, "saerl": 1.0}))
    assert "vanilla does not end above where it began" in words


def test_hostile_and_long_names_are_text() -> None:
    name = "a-name-as-long-as-the-config-has"
    evil = "<script>alert(1)</script> {{ 7 * 7 }}"
    made = arms.make({"vanilla": [0, 1], name: [0, 1]},
                     settings={name: {"like": "saerl", "set": {"quality.method": evil}}})
    made = made.model_copy(update={"name": evil})
    page = comparison_page(made)
    check(page)
    assert "<script" not in page
    assert "<script" not in comparison_markdown(made)
    assert name in page
    assert "{{ 7 * 7 }}" in page


def test_the_same_comparison_gives_the_same_bytes(two: Comparison) -> None:
    again = Comparison.model_validate_json(two.model_dump_json())
    assert comparison_page(again) == comparison_page(two)
    assert comparison_markdown(again) == comparison_markdown(two)


def test_markdown_is_short_and_has_pictures(fifteen: Comparison) -> None:
    text = comparison_markdown(fifteen)
    assert text.startswith("# Comparison made-up\n\nsaerl ends at ")
    assert text.count("<img") == 2
    assert len(text.encode()) < SIZE
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(f"| {arm.name} | ") for line in table) for arm in fifteen.arms)


def test_importing_the_page_draws_nothing() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)
