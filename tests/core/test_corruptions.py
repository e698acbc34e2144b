from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_core import corruptions
from saerl_core.config import CorruptionKind

TEXT = "Tom has 12 apples. He eats 3.5 of them! How many apples are left?"
KINDS: tuple[CorruptionKind, ...] = ("garbled_words", "garbled_letters", "truncated", "question_removed",
                                     "numbers_removed")


@pytest.mark.parametrize(("kind", "expected"), [
    ("question_removed", "Tom has 12 apples. He eats 3.5 of them!"),
    ("numbers_removed", "Tom has apples. He eats of them! How many apples are left?"),
])
def test_damage_is_what_its_name_says(kind: CorruptionKind, expected: str) -> None:
    assert corruptions.corrupt(TEXT, kind, random.Random(0)) == expected


def test_garbled_words_keeps_the_words_and_truncation_keeps_the_beginning() -> None:
    assert sorted((corruptions.corrupt(TEXT, "garbled_words", random.Random(0)) or "").split()) == sorted(TEXT.split())
    assert TEXT.startswith(corruptions.corrupt(TEXT, "truncated", random.Random(0)) or "-")


@given(st.text(), st.sampled_from(KINDS), st.integers(0, 9))
def test_damage_changes_the_text_or_says_that_it_cannot(text: str, kind: CorruptionKind, seed: int) -> None:
    damaged = corruptions.corrupt(text, kind, random.Random(seed))
    assert damaged is None or (damaged.strip() and damaged.split() != text.split())


def test_kinds_come_in_about_equal_shares_and_the_instruction_stays_intact() -> None:
    prompts = [[{"role": "user", "content": f"{TEXT} And {i}?\nUse ####."}] for i in range(100)]
    made = corruptions.make(prompts, KINDS, 100, seed=0, instruction="Use ####.")
    assert len(made) == 100
    assert min(sum(c.kind == kind for c in made) for kind in KINDS) >= 10
    assert all(c.messages[-1]["content"].endswith("\nUse ####.") for c in made)
    assert all(c.messages != prompts[c.row] for c in made)
    assert prompts[0][0]["content"].startswith(TEXT)


def test_a_prompt_that_cannot_take_one_damage_takes_the_next() -> None:
    prompts = [[{"role": "user", "content": "no digits here at all"}]]
    assert corruptions.make(prompts, ("numbers_removed", "garbled_words"), 1, seed=0)[0].kind == "garbled_words"


def test_a_set_that_grows_keeps_nearly_all_of_its_damaged_copies() -> None:
    prompts = [[{"role": "user", "content": f"{TEXT} And {i}?"}] for i in range(210)]
    before = {(c.row, str(c.messages)) for c in corruptions.make(prompts[:200], KINDS, 50, seed=0)}
    after = {(c.row, str(c.messages)) for c in corruptions.make(prompts, KINDS, 50, seed=0)}
    assert len(before & after) >= 45
