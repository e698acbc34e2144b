"""The training pool has the defects that it says it has, and nothing else is wrong with it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from saerl_core.toy import data, world

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
