"""Hygiene against naive loops over all pairs, and what it must not take for a copy."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core import alike, hygiene, ngrams
from saerl_core.config import HygieneConfig
from saerl_core.hygiene import EvaluationSet
from saerl_core.prompts import SCHEMA
from tests.core.rows import rows_from_dense

CONFIG = HygieneConfig()
# few words, numbers and answers: templates, copies and near copies turn up by themselves
words = st.lists(st.sampled_from(["a", "b", "c", "1", "2", "the", "of"]), min_size=1, max_size=9)
problems = st.tuples(words.map(" ".join), st.sampled_from(["1", "2"]))


def table(rows: list[tuple[str, str]], **columns: list[Any]) -> pl.DataFrame:
    """A prompt table of (text, answer) rows."""
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(rows))], "text": [text for text, _ in rows],
                         "answer": [answer for _, answer in rows], **columns},
                        schema_overrides=SCHEMA).pipe(lambda frame: frame.with_columns(
                            pl.lit(None, dtype).alias(name) for name, dtype in SCHEMA.items()
                            if name not in frame.columns))


def reasons(rows: list[tuple[str, str]], *evaluations: list[tuple[str, str]]) -> list[str | None]:
    sets = [EvaluationSet(f"set {i}", table(found)) for i, found in enumerate(evaluations)]
    return hygiene.mark(table(rows), sets, CONFIG)[0]["drop_reason"].to_list()


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = ngrams.tokenise([text])[0]
    return {words[i : i + n] for i in range(len(words) - n + 1)} or {(*words, *[""] * (n - len(words)))}


def group(text: str, answer: str) -> tuple[tuple[str, ...], str]:
    return ngrams.numbers(ngrams.tokenise([text])[0]), answer


@given(st.lists(problems, min_size=1, max_size=12), st.integers(1, 3), st.sampled_from([0.3, 0.5, 0.6, 1.0]))
@settings(max_examples=200, deadline=None)
def test_near_duplicates_are_those_of_a_loop_over_all_pairs(rows: list[tuple[str, str]], n: int,
                                                            threshold: float) -> None:
    sets = [grams(text, n) for text, _ in rows]
    groups = [group(*row) for row in rows]
    common = {g for mine, a in zip(sets, groups, strict=True) for other, b in zip(sets, groups, strict=True)
              if a != b for g in mine & other}

    def close(a: int, b: int) -> bool:
        if groups[a] != groups[b]:
            return False
        if ngrams.tokenise([rows[a][0]]) == ngrams.tokenise([rows[b][0]]):
            return True
        x, y = sets[a] - common, sets[b] - common
        telling = len(x & y) / max(len(x | y), 1)
        return min(telling, len(sets[a] & sets[b]) / len(sets[a] | sets[b])) >= threshold

    kept: list[int] = []
    expected = {}
    for row in range(len(rows)):
        first = next((earlier for earlier in kept if close(earlier, row)), None)
        if first is None:
            kept.append(row)
        else:
            expected[row] = first
    texts = alike.texts_of([text for text, _ in rows], [answer for _, answer in rows], n)
    assert {row: first for row, first, _ in alike.near_duplicates(texts, threshold)} == expected


@given(st.lists(problems, min_size=1, max_size=10), st.lists(problems, min_size=1, max_size=6), st.integers(1, 3),
       st.sampled_from([0.3, 0.5, 1.0]))
@settings(max_examples=200, deadline=None)
def test_contamination_is_that_of_a_loop_over_all_pairs(rows: list[tuple[str, str]], asked: list[tuple[str, str]],
                                                        n: int, threshold: float) -> None:
    def holds(row: int, other: int) -> bool:
        (text, answer), (question, expected) = rows[row], asked[other]
        if answer != expected:
            return False
        if ngrams.tokenise([text]) == ngrams.tokenise([question]):
            return True
        mine, theirs = group(text, "")[0], group(question, "")[0]
        if not any(mine[skip:] == theirs for skip in range(3)):
            return False
        wanted, held = grams(question, n), grams(text, n)
        template = {g for other_text, other_answer in rows if other_answer != answer for g in grams(other_text, n)}
        telling = wanted - template
        return min(len(wanted & held) / len(wanted), len(telling & held) / max(len(telling), 1)) >= threshold

    expected = {row for row in range(len(rows)) if any(holds(row, other) for other in range(len(asked)))}
    texts = alike.texts_of([text for text, _ in rows + asked], [answer for _, answer in rows + asked], n)
    found = alike.contained(texts.take(np.arange(len(rows))), texts.take(np.arange(len(rows), len(rows + asked))),
                            threshold)
    assert {row for row, _, _ in found} == expected
    assert all(holds(row, other) for row, other, _ in found)


@given(st.lists(problems, max_size=15), st.lists(problems, max_size=5))
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_and_marking_again_what_stays_changes_nothing(rows: list[tuple[str, str]],
                                                                      asked: list[tuple[str, str]]) -> None:
    sets = [EvaluationSet("asked", table(asked))]
    marked, findings = hygiene.mark(table(rows), sets, CONFIG)
    assert marked["id"].to_list() == table(rows)["id"].to_list()
    dropped = Counter(marked["drop_reason"].drop_nulls())
    assert dropped["duplicate"] == findings["duplicates"]["total"]
    assert dropped["near_duplicate"] == findings["near_duplicates"]["total"]
    assert dropped["contaminated"] == sum(found["exact"] + found["near"] for found in findings["contamination"])
    kept = marked.filter(pl.col("drop_reason").is_null())
    texts = set(kept["text"])
    assert not texts & {text for text, _ in asked}
    assert len(texts) == kept.height


@given(st.lists(problems, min_size=2, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_marks_do_not_depend_on_how_words_are_numbered(rows: list[tuple[str, str]], shuffler: random.Random) -> None:
    """Other rows in front give every word and n-gram another number, and must change no mark."""
    front = [(f"zz{i} " + " ".join(shuffler.sample(["the", "of", "a", "b", "c"], 5)), f"other {i}") for i in range(2)]
    plain = hygiene.mark(table([*rows, *front]), [], CONFIG)[0]["drop_reason"].to_list()
    assert hygiene.mark(table([*front, *rows]), [], CONFIG)[0]["drop_reason"].to_list() == plain[-2:] + plain[:-2]


def test_exact_copies_conflicts_and_contamination_are_marked_and_all_rows_stay() -> None:
    rows = [("What is 1 + 2?", "3"), ("What is  1 + 2?", "3.0"), ("Name it.", "a"), ("Name it.", "b"),
            ("Ever seen?", "yes"), ("Say 9.", "9")]
    assert reasons(rows, [("Ever seen?", "no")]) == [
        None, "duplicate", "conflicting_answers", "conflicting_answers", "contaminated", None]


def test_templates_with_other_numbers_or_answers_are_not_copies() -> None:
    story = "A farm keeps {} hens and {} are sold at the market on Friday morning. How many hens are left now?"
    rows = [(story.format(a, b), str(a - b)) for a in range(20, 40) for b in range(1, 10)]
    words = [(f"Determine the number of ways to arrange the letters of the word {word}.", answer)
             for word, answer in (("RADII", "60"), ("PROOF", "60"), ("MADAM", "30"), ("TOOT", "6"))]
    assert set(reasons(rows + words, [(story.format(30, 15), "15")])) == {None}


def test_a_rewording_with_the_same_numbers_and_answer_is_a_copy() -> None:
    rows = [
        (r"For how many values of $a$ does the line $y = x + a$ pass through the vertex of $y = x^2 + a^2$?", "2"),
        (r"For how many values of $a$ does the line $y=x+a$ pass through the vertex of the parabola $y=x^2+a^2$?", "2"),
    ]
    assert reasons(rows) == [None, "near_duplicate"]
    assert reasons(rows[:1], [(rows[1][0], "2")]) == ["contaminated"]


def test_an_item_number_in_front_does_not_hide_contamination() -> None:
    question = "Find the largest prime factor of the number 2019 written backwards and then doubled twice."
    assert reasons([("14. (12 points) " + question, "17")], [(question, "17")]) == ["contaminated"]
    assert reasons([(question.replace("2019", "2020"), "17")], [(question, "17")]) == [None]


def test_spacing_and_latex_spelling_alone_make_no_difference() -> None:
    rows = [(r"Let $x_{1} \leq 5$. Find $\dfrac{1}{2}x_{1}$.", "a"),
            (r"Let \( x_1 \le 5 \). Find \(\frac12 x_1\)", "b"),
            ("Is 5! more than 5?", "yes"), ("Is 5 more than 5?", "yes")]
    assert reasons(rows) == [None, None, None, None]
    findings = hygiene.mark(table([(text, "a") for text, _ in rows[:2]]), [], CONFIG)[1]
    assert findings["near_duplicates"]["total"] == 0  # 12 is not 1, 2
    rows[1] = (r"Let \( x_1 \le 5 \). Find \(\frac{1}{2} x_1\)", "b")
    findings = hygiene.mark(table(rows), [], CONFIG)[1]
    assert [pair["id"] for pair in findings["near_conflicts"]["pairs"]] == ["r1"]


def test_several_pass_rates_of_one_prompt_become_their_mean_and_are_reported() -> None:
    rows = [("Count.", "3"), ("Count.", "3"), ("Other.", "1")]
    marked, findings = hygiene.mark(table(rows, pass_rate=[0.25, 0.75, None]), [], CONFIG)
    assert marked["pass_rate"].to_list() == [0.5, 0.5, None]
    assert findings["conflicting_pass_rates"] == {
        "total": 1, "prompts": [{"id": "r0", "text": "Count.", "pass_rates": [0.25, 0.75], "used": 0.5}]}


def test_pairs_are_listed_up_to_a_limit_and_their_total_is_said() -> None:
    findings = hygiene.mark(table([("Say it.", "a")] * 500), [], CONFIG)[1]
    assert findings["duplicates"]["total"] == 499
    assert len(findings["duplicates"]["pairs"]) == hygiene.SHOWN


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_copies_in_sae_space_are_those_of_a_dense_loop(threshold: float) -> None:
    rng = np.random.default_rng(0)
    base = rng.lognormal(size=(20, 300)) * (rng.random((20, 300)) < 0.15)
    dense = np.concatenate([base, base * rng.lognormal(0, 0.3, base.shape), base * (rng.random(base.shape) < 0.8)])
    group_of = rng.integers(0, 2, len(dense))
    weighted = np.sqrt(dense) * np.log((1 + len(dense)) / (1 + (dense > 0).sum(axis=0)))
    unit = weighted / np.linalg.norm(weighted, axis=1, keepdims=True)
    kept: list[int] = []
    expected = {}
    for row in range(len(dense)):
        first = next((k for k in kept if group_of[k] == group_of[row] and unit[k] @ unit[row] >= threshold), None)
        expected.update({row: first} if first is not None else {})
        kept += [row] if first is None else []
    found = alike.near_duplicate_features(rows_from_dense(dense), group_of, threshold)
    assert {row: first for row, first, _ in found} == expected
    assert all(cosine == pytest.approx(unit[row] @ unit[first], abs=1e-5) for row, first, cosine in found)
    assert 0 < len(found) < len(dense)
    assert all(a < b for a, b in pairwise(row for row, _, _ in found))


@pytest.mark.parametrize("text", ["小明有{}个苹果，又买了{}个苹果，现在有几个苹果？", "احسب {} + {}"])
def test_numbers_of_any_script_tell_problems_apart(text: str) -> None:
    digits = ["３４", "٣٤", "34"]
    same = [(text.format(*pair), "7") for pair in digits]
    other = [(text.format(*pair), "7") for pair in ("５２", "٥٢", "52")]
    assert reasons([*same, *other]) == [None, "near_duplicate", "near_duplicate"] * 2
