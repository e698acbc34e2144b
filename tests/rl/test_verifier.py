"""The verifier: what counts as the final answer, and which spellings are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saerl_reward import compute_score

from saerl_core.rl.verl_side.saerl_verifier import extract_answer, is_correct, normalise_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("27-4=23;23*2=46;#46", "46"),
        ("27-4=23;23*2=46;#46<|end|>", "46"),
        ("#46<|im_end|><|endoftext|>", "46"),
        ("#46<|im_end|>7", "46"),
        ("He pays 72.\n#### 72", "72"),
        ("#### 72\nThat is all.", "72"),
        ("#1 no, #2", "2"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"### Step 1: add" + "\n" + r"The sum is \boxed{5}.", "5"),
        (r"#### \boxed{7}", "7"),
        (r"\boxed{a {b} c}", "a {b} c"),
        (r"\boxed{8} and an open \boxed{9", "8"),
        (r"a set \# of things", None),
        ("46", None),
        ("", None),
    ],
)
def test_the_last_marker_holds_the_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("spelling", "plain"),
    [
        (r"12,\!650", "12650"),
        ("12{,}650", "12650"),
        ("1,234,567.50", "1234567.5"),
        ("1 234 567", "1234567"),
        (r"1 \frac{1}{5}", "1&1/5"),
        ("$72$", "72"),
        (r"\$72.00", "72"),
        ("007", "7"),
        ("-0.0", "0"),
        (".5", "0.5"),
        ("3.", "3"),
        ("+3", "3"),
        (r"\text{Monday}", "monday"),
        (r"\dfrac{1}{2}", "1/2"),
        (r"-\frac12", "-1/2"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"50\%", "50"),
        ("(1,234)", "(1,234)"),
        (r"\frac{x}{2}", r"\frac{x}{2}"),
    ],
)
def test_spellings_of_one_answer_are_one(spelling: str, plain: str) -> None:
    assert normalise_answer(spelling) == plain


@pytest.mark.parametrize(("one", "other"), [
    (r"1\frac{1}{5}", r"\frac{11}{5}"), (r"2 \frac14", r"\frac{21}{4}"), ("1 1/5", "11/5"), ("9 6", "96"),
    (r"3\dfrac{1}{2}", r"\dfrac{31}{2}"),
])
def test_answers_that_only_a_gap_tells_apart_are_two(one: str, other: str) -> None:
    assert normalise_answer(one) != normalise_answer(other)


@given(st.text(alphabet=st.sampled_from(list("0123456789.,-+$\\{}frac text!% ()^°#<|>end\n")) | st.characters()))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@given(st.text(), st.text())
def test_any_text_is_judged_without_an_error(response: str, answer: str) -> None:
    assert is_correct(response, answer) in (True, False)
    assert compute_score("any", response, answer) in (0.0, 1.0)


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["#{}", "#### {}", "work;#{}<|end|>", "so $\\boxed{{{}}}$.", "#{}.", "# ${}$", "#{}.0"]),
    st.sampled_from(["{}", "{:,}", " {} ", "${}$", "{}.00", "#### {}"]),
)
def test_a_number_is_right_in_every_spelling(number: int, response: str, reference: str) -> None:
    assert is_correct(response.format(number), reference.format(number))


@given(st.integers(), st.integers(), st.sampled_from(["#{}", "so \\boxed{{{}}}", "#### {:,}<|im_end|>"]))
def test_another_number_is_wrong(stated: int, expected: int, response: str) -> None:
    assert is_correct(response.format(stated), str(expected)) == (stated == expected)


def test_an_answer_without_a_marker_earns_nothing() -> None:
    assert not is_correct("46", "46")


def test_an_empty_reference_is_never_met() -> None:
    assert not is_correct("#", "")
    assert not is_correct("#$", "$")
