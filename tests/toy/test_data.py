"""The training pool has the defects that it says it has, and nothing else is wrong with it."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from saerl_core.toy import build, data, world
from tests.conftest import TOY

ROWS = 600


@pytest.fixture(scope="module")
def problems() -> list[world.Problem]:
    return world.draw_distinct(random.Random(0), data.count_distinct(ROWS))


@pytest.fixture(scope="module")
def pool(problems: list[world.Problem]) -> list[data.Row]:
    return data.make_pool(problems, ROWS, "seed")


def test_defects_come_in_their_shares(pool: list[data.Row]) -> None:
    assert Counter(row["defect"] for row in pool) == {"": 474, "wrong_key": 72, "garbled": 48, "duplicate": 6}
    assert [row["id"] for row in pool] == [f"train-{place:05d}" for place in range(ROWS)]


def test_only_defective_rows_differ_from_their_problems(
    pool: list[data.Row], problems: list[world.Problem]
) -> None:
    originals = iter(problems)
    for row in pool:
        if row["defect"] == "duplicate":
            continue
        problem = next(originals)
        assert (row["problem"] == problem.text) == (row["defect"] != "garbled")
        assert (row["answer"] == problem.answer) == (row["defect"] != "wrong_key")
        assert (row["topic"], row["level"]) == (problem.topic, problem.level)


def test_a_duplicate_repeats_an_earlier_sound_row_under_another_id(pool: list[data.Row]) -> None:
    for place, row in enumerate(pool):
        if row["defect"] == "duplicate":
            twins = [other for other in pool[:place] if other["problem"] == row["problem"]]
            assert [(twin["answer"], twin["defect"]) for twin in twins] == [(row["answer"], "")]


def test_a_near_duplicate_tells_an_earlier_sound_row_in_other_words() -> None:
    shares = data.Shares(wrong_key=0.1, garbled=0.05, duplicate=0.02, near_duplicate=0.1)
    stories = world.draw_distinct(random.Random(1), data.count_distinct(ROWS, shares))
    known = {story.text: story for story in stories}
    made = data.make_pool(stories, ROWS, "seed", shares)
    assert Counter(row["defect"] for row in made) == {
        "": 438, "wrong_key": 60, "garbled": 30, "duplicate": 12, "near_duplicate": 60}
    texts = [row["problem"] for row in made if row["defect"] != "duplicate"]
    assert len(set(texts)) == len(texts)
    for place, row in enumerate(made):
        if row["defect"] == "near_duplicate":
            numbers = re.findall(r"\d+", row["problem"])
            twins = [other for other in made[:place] if not other["defect"]
                     and re.findall(r"\d+", other["problem"]) == numbers and other["topic"] == row["topic"]
                     and (other["answer"], other["level"]) == (row["answer"], row["level"])
                     and _phrases(other["problem"]) == _phrases(row["problem"])]
            assert twins
            assert row["problem"] not in known


def _phrases(text: str) -> list[str]:
    """The story without its opening, its numbers and who it is about."""
    return [re.sub(r"\d+|\b(Tom|Ann|Sam|Eva|Leo|Mia|Ben|Zoe)\b", "_", sentence)
            for sentence in re.split(r"(?<=[.?]) ", text)[1:]]


def test_no_near_duplicate_has_a_text_that_is_taken(problems: list[world.Problem]) -> None:
    shares = data.Shares(near_duplicate=0.2)
    first = data.make_pool(problems[: data.count_distinct(ROWS, shares)], ROWS, "seed", shares)
    taken = {row["problem"] for row in first if row["defect"] == "near_duplicate"}
    second = data.make_pool(problems[: data.count_distinct(ROWS, shares)], ROWS, "seed", shares, exclude=taken)
    assert not taken & {row["problem"] for row in second}
    assert len(second) == ROWS


def test_the_benchmarks_sets_share_no_problem_with_each_other_or_with_those_that_ship() -> None:
    shares = data.Shares(near_duplicate=0.05)
    pool, heldout = build.draw_benchmark(3, 1000, 500, shares)
    shipped = {row["problem"] for name in ("train", "heldout")
               for row in data.read_rows(TOY / f"{name}.jsonl.gz")}
    texts, tested = {row["problem"] for row in pool}, {row["problem"] for row in heldout}
    assert not texts & tested
    assert not (texts | tested) & shipped
    assert Counter(row["defect"] for row in pool)["near_duplicate"] == 50
    assert Counter(row["level"] for row in heldout) == dict.fromkeys(world.LEVELS, 100)
    assert {row["defect"] for row in heldout} == {""}
    assert build.draw_benchmark(3, 1000, 500, shares) == (pool, heldout)
    assert build.draw_benchmark(3, 2000, 500, shares)[1] == heldout
    assert build.draw_benchmark(4, 1000, 500, shares)[0] != pool


def test_the_same_seed_gives_the_same_pool(pool: list[data.Row], problems: list[world.Problem]) -> None:
    assert data.make_pool(problems, ROWS, "seed") == pool
    assert data.make_pool(problems, ROWS, "other") != pool


def test_garbling_always_changes_the_text() -> None:
    rng = random.Random(0)
    assert all(data.garble("Tom spends 5.", rng) != "Tom spends 5." for _ in range(300))


def test_rows_survive_the_disk_and_the_same_rows_give_the_same_bytes(tmp_path: Path, pool: list[data.Row]) -> None:
    first, second = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    data.write_rows(pool, first)
    data.write_rows(pool, second)
    assert data.read_rows(first) == pool
    assert first.read_bytes() == second.read_bytes()
