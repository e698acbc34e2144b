from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core import keyed, labels
from saerl_core.rl.verifiers import stated_answer
from saerl_core.rl.verl_side.saerl_verifier import is_correct

KEYS = [f"{i:032x}" for i in range(400)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(1, 250), st.integers(0, 3))
def test_every_cluster_is_labelled_in_proportion_to_its_size(numbers: list[int], count: int, seed: int) -> None:
    clusters = np.array(numbers)
    chosen = labels.choose(KEYS[: len(numbers)], clusters, count, seed)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, len(numbers))
    for number in set(numbers):
        exact = (clusters == number).sum() * len(chosen) / len(numbers)
        assert abs((clusters[chosen] == number).sum() - exact) < 1


def test_a_set_that_grows_keeps_nearly_all_of_its_labels() -> None:
    clusters = np.arange(400) % 8
    before = labels.choose(KEYS[:390], clusters[:390], 100, seed=0)
    after = labels.choose(KEYS, clusters, 100, seed=0)
    assert len(set(before.tolist()) & set(after.tolist())) >= 90


def test_measured_pass_rates_are_kept_by_key_and_a_damaged_segment_is_forgotten(tmp_path: Path) -> None:
    keyed.add(tmp_path, measured((KEYS[0], 0.25), (KEYS[1], 0.5)))
    keyed.add(tmp_path, measured((KEYS[2], 1.0)))
    known = keyed.read(tmp_path, labels.MEASURED)
    assert dict(known.select("key", "pass_rate").iter_rows()) == {KEYS[0]: 0.25, KEYS[1]: 0.5, KEYS[2]: 1.0}
    first = sorted(tmp_path.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    assert keyed.read(tmp_path, labels.MEASURED).height in (1, 2)
    assert not first.exists()


def test_a_key_that_two_runs_labelled_counts_once(tmp_path: Path) -> None:
    keyed.add(tmp_path, measured((KEYS[0], 0.25)))
    keyed.add(tmp_path, measured((KEYS[0], 0.25), (KEYS[1], 0.5)))
    assert sorted(keyed.read(tmp_path, labels.MEASURED)["key"]) == KEYS[:2]


def test_judging_counts_what_is_right_and_what_most_samples_state() -> None:
    found = labels.judge(
        ["a", "b", "c"],
        [["#4", "#4", "#5", "none"], ["#6", "#6.0", "#7", "#6"], ["?", "?", "?", "?"]],
        ["4", "8", "9"], lambda response, answer: float(is_correct(response, answer)), stated_answer)
    assert found.rows() == [("a", 0.5, 4, 0.5, True), ("b", 0.0, 4, 0.75, False), ("c", 0.0, 4, 0.0, False)]


@pytest.mark.parametrize(("responses", "doubtful"), [
    (["#6", "#6", "#6", "#7"], True),  # they agree, and the key says otherwise
    (["#6", "#6", "#7", "#8"], True),  # half of them
    (["#6", "#7", "#8", "#9"], False),  # they do not know
    (["?", "?", "?", "?"], False),  # they state nothing
    (["#6", "#6", "#6", "#5"], False),  # one is right: the key can be met
    (["#6"], False),  # one sample cannot agree with itself
])
def test_a_zero_is_doubtful_where_the_samples_agree_on_another_answer(responses: list[str], doubtful: bool) -> None:
    found = labels.judge(["a"], [responses], ["5"], lambda response, answer: float(is_correct(response, answer)),
                         stated_answer)
    assert labels.doubt_measured(found, 0.5).tolist() == [doubtful]


@pytest.mark.parametrize("answer", [
    r"12,\!650", "1{,}010{,}000", "400,000", r"\$1,\!657", "$a+4$", r"\( \frac{1}{2} \)", r"\[ 98 \]", r"\boxed{60}",
    r"\text{4:10 P.M.}", r"-3 \text{ and } 5",
])
def test_a_given_zero_is_doubtful_where_the_key_is_spelled_as_a_literal_grader_misreads_it(answer: str) -> None:
    assert labels.doubt_given(np.array([0.0, 0.1]), [answer, answer]).tolist() == [True, False]


@pytest.mark.parametrize("answer", ["194", "-2.5", r"\frac{5}{256}", "(44,35)", "x^2-y^2", r"3 + 2\sqrt{3}", r"\$3.47",
                                    r"35\%", "(1,2,3)", "[-2,4]"])
def test_a_given_zero_with_a_plain_key_is_believed(answer: str) -> None:
    assert labels.doubt_given(np.array([0.0]), [answer]).tolist() == [False]


def test_the_real_zeros_of_a_literal_grader_are_found(shared: Path) -> None:
    with gzip.open(shared / "data" / "deepscaler_passrate_dev.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    rate, answers = np.array([row["pass_rate"] for row in rows]), [row["answer"] for row in rows]
    doubtful = labels.doubt_given(rate, answers)
    assert doubtful[[answer == r"12,\!650" for answer in answers]].all()
    # Markup makes a zero several times as likely as it is elsewhere: those are the grader's, not the prompts'.
    marked = labels.doubt_given(np.zeros(len(rate)), answers)
    assert (rate[marked] == 0).mean() > 3 * (rate[~marked] == 0).mean()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=50))
def test_a_harder_level_stands_for_a_lower_rate(level: list[int]) -> None:
    rate = labels.rate_from_level(np.array(level, dtype=float))
    assert np.all((rate > 0) & (rate < 1))
    assert rate.mean() == pytest.approx(0.5)
    for i, one in enumerate(level):
        assert rate[i] == pytest.approx(1 - sum((other < one) + (other == one) / 2 for other in level) / len(level))


def test_the_store_changes_with_everything_that_a_label_depends_on() -> None:
    names = {labels.store_name(source, {"samples": samples, "verifier": verifier})
             for source in ("a" * 64, "b" * 64) for samples in (4, 8) for verifier in ("exact-1", "math-verify-0.9.0")}
    assert len(names) == 8


def test_shuffled_labels_are_the_same_labels_of_the_same_prompts() -> None:
    found = pl.DataFrame({"row": range(100), "pass_rate": np.linspace(0, 1, 100), "samples": range(100),
                          "doubtful": [n < 10 for n in range(100)]})
    mixed = labels.shuffled(found, 0)
    assert mixed["row"].equals(found["row"])
    assert mixed.select(pl.exclude("row")).sort("samples").equals(found.select(pl.exclude("row")))
    assert mixed.equals(labels.shuffled(found, 0))
    assert not mixed.equals(labels.shuffled(found, 1))
    assert abs(np.corrcoef(mixed["pass_rate"], found["pass_rate"])[0, 1]) < 0.3


def measured(*rows: tuple[str, float]) -> pl.DataFrame:
    return pl.DataFrame([{"key": key, "pass_rate": rate, "samples": 4, "majority_share": 0.5, "majority_correct": True}
                         for key, rate in rows], schema=labels.MEASURED)
