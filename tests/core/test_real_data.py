"""Hygiene on real prompts: the copies, contradictions and overlaps that are really in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from saerl_core import hygiene, ngrams, prompts
from saerl_core.config import DataConfig, HygieneConfig
from saerl_core.hygiene import EvaluationSet, Findings
from saerl_core.rl.verl_side.saerl_verifier import normalise_answer

CONFIG = DataConfig(path="unused", preset="saerl")
Marked = tuple[pl.DataFrame, Findings]


@pytest.fixture(scope="session")
def read(shared: Path) -> Callable[[str], pl.DataFrame]:
    """A real data set by its name, as it is read."""
    return lambda name: prompts.read_table((shared / "data" / f"{name}.jsonl.gz",), CONFIG, CONFIG)


@pytest.fixture(scope="session")
def deepscaler(read: Callable[[str], pl.DataFrame]) -> Marked:
    return hygiene.mark(read("deepscaler_passrate_dev"), [EvaluationSet("MATH-500", read("math500"))], HygieneConfig())


def counted(marked: Marked) -> dict[str, int]:
    """Rows by drop reason, `kept` among them; together they are all rows read."""
    reasons = marked[0]["drop_reason"].fill_null("kept").value_counts()
    return dict(reasons.sort("drop_reason").rows())


def test_every_deepscaler_row_is_kept_or_dropped_with_a_reason(deepscaler: Marked) -> None:
    assert counted(deepscaler) == {"conflicting_answers": 195, "contaminated": 6, "duplicate": 167, "kept": 14539,
                                   "near_duplicate": 110}
    assert sum(counted(deepscaler).values()) == deepscaler[1]["rows"] == 15017


def test_one_text_with_two_answers_is_reported(deepscaler: Marked) -> None:
    found = deepscaler[1]["conflicting_answers"]
    assert found["total"] == len(found["pairs"]) == 105
    for pair in found["pairs"]:
        assert pair["text"] == pair["other_text"]
        assert pair["answer"] != pair["other_answer"]


def test_one_text_with_two_pass_rates_is_reported_and_their_mean_used(deepscaler: Marked) -> None:
    found = deepscaler[1]["conflicting_pass_rates"]
    assert found["total"] == len(found["prompts"]) > 100
    used = dict(deepscaler[0].select("id", "pass_rate").iter_rows())
    for prompt in found["prompts"]:
        assert used[prompt["id"]] == pytest.approx(sum(prompt["pass_rates"]) / len(prompt["pass_rates"]), abs=1e-6)


def test_math_500_problems_in_deepscaler_are_found(deepscaler: Marked) -> None:
    (found,) = deepscaler[1]["contamination"]
    assert (found["set"], found["rows"], found["exact"], found["near"]) == ("MATH-500", 500, 2, 4)
    starts = {pair["other_text"][:42]: pair["overlap"] for pair in found["pairs"]}
    assert starts["Steve says to Jon, \"I am thinking of a pol"] == 1.0
    assert starts["When rolling a certain unfair six-sided di"] == pytest.approx(0.68, abs=0.01)
    assert starts["Let $S$ be the set of points $(a,b)$ with "] == pytest.approx(0.6, abs=0.01)
    assert all(normalise_answer(pair["answer"]) == normalise_answer(pair["other_answer"]) for pair in found["pairs"])


def test_near_duplicates_in_deepscaler_have_the_same_numbers_and_answer(deepscaler: Marked) -> None:
    by_id = {row["id"]: row for row in deepscaler[0].select("id", "text", "answer").iter_rows(named=True)}
    pairs = deepscaler[1]["near_duplicates"]["pairs"]
    assert len(pairs) == 110
    for pair in pairs:
        one, other = by_id[pair["id"]], by_id[pair["other_id"]]
        assert one["text"] != other["text"]
        assert normalise_answer(one["answer"]) == normalise_answer(other["answer"])
        first, second = (ngrams.numbers(words) for words in ngrams.tokenise([one["text"], other["text"]]))
        assert first == second


def test_gsm8k_loses_one_prompt_to_its_copy_and_none_to_its_test_set(read: Callable[[str], pl.DataFrame]) -> None:
    marked = hygiene.mark(read("gsm8k_train"), [EvaluationSet("test", read("gsm8k_test"))], HygieneConfig())
    assert counted(marked) == {"kept": 7472, "near_duplicate": 1}
    (pair,) = marked[1]["near_duplicates"]["pairs"]
    assert pair["text"].removeprefix("Amanda") == pair["other_text"].removeprefix("Josie")


def test_a_test_set_inside_its_own_train_set_is_found_whole(read: Callable[[str], pl.DataFrame]) -> None:
    train, test = read("gsm8k_train"), read("gsm8k_test")
    marked, findings = hygiene.mark(pl.concat([train, test]), [EvaluationSet("test", test)], HygieneConfig())
    assert findings["contamination"][0]["exact"] == test.height
    assert marked["drop_reason"].head(train.height).drop_nulls().to_list() == ["near_duplicate"]


def test_damaged_copies_are_never_taken_for_near_duplicates_of_other_problems(
        read: Callable[[str], pl.DataFrame]) -> None:
    marked, findings = hygiene.mark(read("synthetic_corruptions"), [], HygieneConfig())
    assert sum(counted((marked, findings)).values()) == 3874
    for pair in findings["near_duplicates"]["pairs"]:
        assert pair["answer"] == pair["other_answer"]
