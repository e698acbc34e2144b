from __future__ import annotations

import re
import subprocess
import sys

import pytest

from saerl_core.compare.result import Comparison
from saerl_core.report.comparison import comparison_markdown, comparison_page
from saerl_core.report.markdown import SIZE
from saerl_core.report.markup import percent
from saerl_core.report.verdict import lead, warnings
from tests.report import arms
from tests.report.test_page import check

IMPORT = """
import sys
import saerl_core.report.comparison
assert not {"matplotlib", "polars"} & set(sys.modules), "importing the page must stay cheap"
"""


@pytest.fixture(scope="module")
def two() -> Comparison:
    return arms.make({"vanilla": range(5), "saerl": range(5)})


@pytest.fixture(scope="module")
def page_of_two(two: Comparison) -> str:
    return comparison_page(two)


@pytest.fixture(scope="module")
def fifteen() -> Comparison:
    return arms.make(arms.all_arms(0, 1, 2))


def read(page: str) -> str:
    """The text of a page, which has to be sound."""
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", page)
    return " ".join(check(page).text.split())


def test_the_page_begins_with_what_came_out(two: Comparison, page_of_two: str) -> None:
    words = read(page_of_two)
    assert f"made-up {lead(two)} arms 2 trainings 10 steps each 200" in words
    assert "Worth knowing" not in words
    assert check(page_of_two).tags.count("svg") == 7


def test_the_tables_have_every_figure_of_every_arm_and_training(two: Comparison, page_of_two: str) -> None:
    words = read(page_of_two)
    for arm in two.arms:
        for found in (arm.final, arm.final_greedy, arm.area, *arm.groups["level"].values()):
            assert found.low is not None
            assert found.high is not None
            assert f"{percent(found.mean)}{percent(found.low)} to {percent(found.high)}" in words
        for run in arm.runs:
            assert f"{arm.name}{run.seed}{percent(run.final_sampled)}{percent(run.final_greedy)}" in words
        assert all(f"{field}{value}" in words for field, value in arm.fields.items())


def test_all_arms_have_their_place(fifteen: Comparison) -> None:
    page = comparison_page(fifteen)
    words = read(page)
    assert all(told in words for told in warnings(fifteen))
    assert check(page).tags.count("svg") == 8
    assert len(page) < 1_000_000
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for arm in fifteen.arms[1:]:
        shown = sum(f">{arm.name}<" in drawing or f">{arm.name.rpartition('-')[2]}<" in drawing for drawing in drawings)
        assert shown >= 3, f"{arm.name}: its curve, its gain, its batches"
        assert arm.about in words


def test_one_seed_has_no_interval_anywhere() -> None:
    words = read(comparison_page(arms.make({"vanilla": [3], "saerl": [3]})))
    assert not re.search(r"\d%? to [−+\d]", words)


def test_one_arm_alone_and_without_levels_is_shown() -> None:
    words = read(comparison_page(arms.make({"vanilla": [0, 1]}, levels=False)))
    assert "No other arm is there to compare it with." in words
    assert "Gain over" not in words
    assert "By level" not in words


def test_a_target_that_is_never_reached_or_reached_at_once_leaves_no_hole() -> None:
    never = read(comparison_page(arms.make({"vanilla": [0, 1], "saerl": [0, 1]}, speed={"vanilla": 3, "saerl": 0.3})))
    assert re.search(r"saerlthe config as it stands2.*never––", never)
    at_once = read(comparison_page(arms.make({"vanilla": [0, 1], "saerl": [0, 1]}, speed={"vanilla": -1, "saerl": 1})))
    assert re.search(r"saerlthe config as it stands2.*00 to 0––", at_once)


def test_hostile_and_long_names_are_text() -> None:
    name = "a-name-as-long-as-the-config-has"
    evil = "<script>alert(1)</script> {{ 7 * 7 }}"
    made = arms.make({"vanilla": [0, 1], name: [0, 1]},
                     settings={name: {"like": "saerl", "set": {"quality.method": evil}}})
    made = made.model_copy(update={"name": evil})
    page = comparison_page(made)
    read(page)
    assert "<script" not in page
    assert "<script" not in comparison_markdown(made)
    assert "{{ 7 * 7 }}" in page


def test_dollars_and_backslashes_in_a_subjects_name_are_text(two: Comparison) -> None:
    name = r"costs $a_$ and \foo$"
    named = [arm.model_copy(update={"groups": {"subject": {name: next(iter(arm.groups["subject"].values()))}}})
             for arm in two.arms]
    assert name in read(comparison_page(two.model_copy(update={"arms": named})))


def test_the_same_comparison_gives_the_same_bytes(two: Comparison, page_of_two: str) -> None:
    again = Comparison.model_validate_json(two.model_dump_json())
    assert comparison_page(again) == page_of_two
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
