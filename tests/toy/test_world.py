"""The world of stories: reproducible, right by an independent reckoning, and half understood as it says."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from saerl_core.rl.verl_side.saerl_verifier import is_correct
from saerl_core.toy import world

STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+);")
OPERATORS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def draw(count: int, seed: int = 0) -> list[world.Problem]:
    rng = random.Random(seed)
    return [world.draw_problem(rng) for _ in range(count)]


def reckon(solution: str) -> list[int]:
    """All values of a worked solution, each checked against the one before."""
    body, _, answer = solution.partition("#")
    steps = STEP.findall(body)
    assert "".join(f"{a}{op}{b}={c};" for a, op, b, c in steps) == body
    values = [int(steps[0][0])]
    for before, operator, operand, after in steps:
        assert int(before) == values[-1]
        values.append(OPERATORS[operator](int(before), int(operand)))
        assert int(after) == values[-1]
    assert int(answer) == values[-1]
    return values


def test_the_world_is_as_large_as_promised() -> None:
    phrases = [phrase for topic in world.TOPICS for phrase in topic.phrases]
    assert len(world.TOPICS) >= 8
    assert 30 <= len(phrases) <= 36
    assert len({phrase.text for phrase in phrases}) == len(phrases)
    assert all(phrase.operation != phrase.misconception for phrase in phrases)
    assert all(phrase.text.count("{x}") == 1 and 0 < phrase.learned < 1 for phrase in phrases)
    assert all(topic.question.endswith("?") for topic in world.TOPICS)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert draw(50) == draw(50)
    assert draw(50) != draw(50, seed=1)


def test_a_worked_solution_reckons_to_the_answer_with_the_numbers_of_the_text() -> None:
    for problem in draw(500):
        solution = world.write_solution(problem)
        values = reckon(solution)
        assert str(values[-1]) == problem.answer
        assert is_correct(solution, problem.answer)
        told = [int(number) for number in re.findall(r"\d+", problem.text)]
        assert told == [problem.start, *(int(operand) for _, _, operand, _ in STEP.findall(solution))]
        assert len(values) == problem.level + 1


def test_no_value_leaves_0_to_99_whether_read_right_or_not() -> None:
    rng = random.Random(1)
    for problem in draw(500):
        for solution in (world.write_solution(problem), world.write_base_solution(problem, rng)):
            assert all(0 <= value <= 99 for value in reckon(solution))
        assert 0 <= int(problem.likely_mistake) <= 99


def test_a_story_opens_with_its_number_and_ends_with_the_question_of_its_topic() -> None:
    questions = {topic.name: topic.question for topic in world.TOPICS}
    for problem in draw(100):
        assert problem.text.endswith(f" {questions[problem.topic]}")
        assert f" {problem.start} " in problem.text.partition(".")[0] + " "


def test_the_base_model_reads_each_phrase_right_about_as_often_as_it_says() -> None:
    rng = random.Random(2)
    right, seen = Counter[str](), Counter[str]()
    for _ in range(12_000):
        problem = world.draw_problem(rng, level=1)
        phrase = problem.steps[0].phrase
        seen[phrase.text] += 1
        right[phrase.text] += is_correct(world.write_base_solution(problem, rng), problem.answer)
    for topic in world.TOPICS:
        for phrase in topic.phrases:
            assert seen[phrase.text] > 200
            assert right[phrase.text] / seen[phrase.text] == pytest.approx(phrase.learned, abs=0.12)


def test_a_likely_mistake_nearly_always_differs_from_the_answer() -> None:
    problems = draw(500)
    assert sum(problem.likely_mistake != problem.answer for problem in problems) > 490


def test_longer_stories_are_expected_to_be_harder() -> None:
    rates = {level: [] for level in world.LEVELS}
    for problem in draw(3000):
        rates[problem.level].append(problem.expected_pass_rate)
    means = [sum(rates[level]) / len(rates[level]) for level in world.LEVELS]
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.5
    assert means[-1] < 0.15


def test_distinct_problems_are_distinct_and_avoid_what_is_excluded() -> None:
    taken = {problem.text for problem in world.draw_distinct(random.Random(3), 400)}
    assert len(taken) == 400
    more = world.draw_distinct(random.Random(3), 400, exclude=taken, balanced=True)
    assert not taken & {problem.text for problem in more}
    assert set(Counter(problem.level for problem in more).values()) == {80}
    assert not taken & {problem.text for problem in world.draw_others(random.Random(3), 400, exclude=taken)}
