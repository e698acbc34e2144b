"""The toy's data sets: a training pool with the defects that real pools have, and a clean held-out set.

A defect's name is written beside the row, so that a filter can be measured; curation never reads it.
"""

from __future__ import annotations

import gzip
import json
import random
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from saerl_core.toy.world import Problem, retell

_LETTER_SHARE = 0.13

Defect = Literal["", "wrong_key", "garbled", "duplicate", "near_duplicate"]


class Row(TypedDict):
    """One line of a data set."""

    id: str
    problem: str
    answer: str
    topic: str
    level: int
    defect: Defect


@dataclass(frozen=True)
class Shares:
    """How much of a pool is wrong, each as a share of all rows. The defaults are those of the shipped pool."""

    wrong_key: float = 0.12
    """the answer is a likely mistake (the hardest phrase misread), which a policy can be rewarded for"""
    garbled: float = 0.08
    """the text is damaged"""
    duplicate: float = 0.01
    """a sound row, met again later under an id of its own"""
    near_duplicate: float = 0.0
    """a sound row, told again later in other words: the same numbers, steps and answer"""


SHIPPED = Shares()


def make_clean_rows(problems: Sequence[Problem], prefix: str) -> list[Row]:
    """One row a problem, in order; ids are `<prefix>-00000` and so on."""
    return [_row(problem, f"{prefix}-{place:05d}") for place, problem in enumerate(problems)]


def count_distinct(rows: int, shares: Shares = SHIPPED) -> int:
    """How many different problems a pool of `rows` rows needs: the rest are duplicates and near-duplicates."""
    return rows - round(rows * shares.duplicate) - round(rows * shares.near_duplicate)


def make_pool(problems: Sequence[Problem], rows: int, seed: str, shares: Shares = SHIPPED,
              exclude: Collection[str] = ()) -> list[Row]:
    """A training pool with its defects; the rest is as it should be.

    Args:
        problems: `count_distinct(rows, shares)` different problems.
        rows: Size of the pool.
        seed: Of the choice and of the damage.
        shares: How much is wrong with it.
        exclude: Texts that no near-duplicate may have.
    """
    rng = random.Random(seed)
    pool = make_clean_rows(problems, "")
    fallible = [place for place, problem in enumerate(problems) if problem.likely_mistake != problem.answer]
    wrong = set(rng.sample(fallible, round(rows * shares.wrong_key)))
    rest = [place for place in range(len(pool)) if place not in wrong]
    garbled = set(rng.sample(rest, round(rows * shares.garbled)))
    for place, problem in enumerate(problems):
        if place in wrong:
            pool[place] = {**pool[place], "answer": problem.likely_mistake, "defect": "wrong_key"}
        elif place in garbled:
            pool[place] = {**pool[place], "problem": garble(problem.text, rng), "defect": "garbled"}
    sound = [row for row in pool if not row["defect"]]
    again: list[tuple[Row, Row]] = [(row, {**row, "defect": "duplicate"})
                                    for row in rng.sample(sound, round(rows * shares.duplicate))]
    again += _retold(sound, {row["id"]: problem for row, problem in zip(pool, problems, strict=True)},
                     round(rows * shares.near_duplicate), rng, exclude)
    for row, other in again:
        pool.insert(rng.randint(pool.index(row) + 1, len(pool)), other)
    return [{**row, "id": f"train-{place:05d}"} for place, row in enumerate(pool)]


def garble(text: str, rng: random.Random) -> str:
    """The text with its words shuffled, some of its characters dropped, or some of its letters replaced."""
    damage = rng.choice((_shuffle_words, _drop_characters, _replace_letters))
    while True:
        garbled = damage(text, rng)
        if garbled != text:
            return garbled


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write gzipped JSON lines. The same rows give the same bytes: no time stamp, no file name inside."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed:
        packed.write(lines.encode())


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _row(problem: Problem, name: str) -> Row:
    return {
        "id": name,
        "problem": problem.text,
        "answer": problem.answer,
        "topic": problem.topic,
        "level": problem.level,
        "defect": "",
    }


def _retold(sound: Sequence[Row], problems: Mapping[str, Problem], count: int, rng: random.Random,
            exclude: Collection[str]) -> list[tuple[Row, Row]]:
    """`count` pairs of a sound row and a near-duplicate of it, whose text is nobody else's."""
    taken = {*exclude, *(problem.text for problem in problems.values())}
    found: list[tuple[Row, Row]] = []
    for row in rng.sample(sound, len(sound)) if count else ():
        other = retell(problems[row["id"]], rng).text
        if len(found) < count and other not in taken:
            taken.add(other)
            found.append((row, {**row, "problem": other, "defect": "near_duplicate"}))
    assert len(found) == count, "more near-duplicates than sound rows to tell again"
    return found


def _shuffle_words(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def _drop_characters(text: str, rng: random.Random) -> str:
    return "".join(character for character in text if rng.random() >= _LETTER_SHARE)


def _replace_letters(text: str, rng: random.Random) -> str:
    return "".join(
        rng.choice(string.ascii_lowercase) if character.isalpha() and rng.random() < _LETTER_SHARE else character
        for character in text
    )
