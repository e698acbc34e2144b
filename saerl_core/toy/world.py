"""Graded word problems in which reinforcement learning has something to win.

A story opens with a number, and each of its sentences changes that number; a level is the number of sentences.
The arithmetic of one sentence is easy and is written out (`27-4=23;23*2=46;#46`). What is hard is the reading: a
phrase ("A fox leaves 4 fewer") means an operation, which the base model has learned only with a probability of
the phrase's own; otherwise it takes the phrase's typical misconception. So a problem's pass rate is about the
product over its sentences: it falls with the level and differs by phrase, and what is learned about a phrase in
a short story carries over to long ones.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

Operation = Literal["+", "-", "*"]

LEVELS = (1, 2, 3, 4, 5)
"""A level is a number of sentences that change the number."""
LIMIT = 99
"""No value of a story is above this or below 0, whether the story is read right or misread."""
ANSWER_MARK = "#"
"""The answer follows it: what SAERL's verifier looks for."""
_NAMES = ("Tom", "Ann", "Sam", "Eva", "Leo", "Mia", "Ben", "Zoe")
_START = (5, 40)
_OPERANDS: dict[Operation, tuple[int, int]] = {"+": (1, 9), "-": (1, 9), "*": (2, 3)}


@dataclass(frozen=True)
class Phrase:
    """A sentence, what it means, what it is mistaken for, and how often the base model has it right."""

    text: str
    operation: Operation
    misconception: Operation
    learned: float


@dataclass(frozen=True)
class Topic:
    """A setting: how its stories open, what can happen in them, and what is asked."""

    name: str
    opening: str
    phrases: tuple[Phrase, ...]
    question: str
    retold: str = ""
    """another opening, for near-duplicates of stories in which nobody is named; neither model nor SAE has seen it"""


@dataclass(frozen=True)
class Step:
    """One sentence of a story with its number."""

    phrase: Phrase
    operand: int


@dataclass(frozen=True)
class Problem:
    """A story of `level` steps that starts at `start`, and its text."""

    topic: str
    start: int
    steps: tuple[Step, ...]
    text: str

    @property
    def level(self) -> int:
        """Number of steps."""
        return len(self.steps)

    @property
    def answer(self) -> str:
        """The result of reading every phrase right."""
        return str(_values(self.start, self.steps, _right(self.steps))[-1])

    @property
    def likely_mistake(self) -> str:
        """The result of misreading the phrase that the base model knows least, wherever it occurs."""
        return str(_values(self.start, self.steps, _mistaken(self.steps))[-1])

    @property
    def expected_pass_rate(self) -> float:
        """Probability that the base model reads every phrase right."""
        product = 1.0
        for step in self.steps:
            product *= step.phrase.learned
        return product


TOPICS: tuple[Topic, ...] = (
    Topic("shop", "{name} has {start} coins.", (
        Phrase("{name} earns {x} more.", "+", "-", 0.9),
        Phrase("{name} spends {x}.", "-", "+", 0.76),
        Phrase("{name} now has {x} times that.", "*", "+", 0.48),
        Phrase("{name} is fined {x}.", "-", "+", 0.3),
    ), "How many coins now?"),
    Topic("bus", "A bus carries {start} people.", (
        Phrase("{x} get on.", "+", "-", 0.9),
        Phrase("{x} get off.", "-", "+", 0.66),
        Phrase("{x} are told to leave.", "-", "+", 0.4),
        Phrase("{x} jump in.", "+", "-", 0.25),
    ), "How many people now?", "There are {start} people on a bus."),
    Topic("weather", "It is {start} degrees.", (
        Phrase("It warms by {x}.", "+", "-", 0.84),
        Phrase("It cools by {x}.", "-", "+", 0.76),
        Phrase("The sun puts {x} on.", "+", "-", 0.55),
        Phrase("A front takes {x} away.", "-", "+", 0.35),
    ), "How warm is it now?", "Today it is {start} degrees."),
    Topic("farm", "A farm keeps {start} hens.", (
        Phrase("{x} hatch.", "+", "-", 0.84),
        Phrase("{x} are sold.", "-", "+", 0.66),
        Phrase("A fox leaves {x} fewer.", "-", "+", 0.4),
        Phrase("The hens are now {x} times that.", "*", "+", 0.3),
    ), "How many hens now?", "The farm keeps {start} hens."),
    Topic("book", "{name} is on page {start}.", (
        Phrase("{name} reads {x} pages.", "+", "-", 0.9),
        Phrase("{name} goes back {x} pages.", "-", "+", 0.66),
        Phrase("{name} skips {x} pages.", "+", "-", 0.35),
        Phrase("{name} rereads the last {x}.", "-", "+", 0.25),
    ), "Which page is it now?"),
    Topic("lift", "The lift is at floor {start}.", (
        Phrase("It climbs {x}.", "+", "-", 0.84),
        Phrase("It drops {x}.", "-", "+", 0.84),
        Phrase("It is sent {x} above.", "+", "-", 0.6),
        Phrase("It is called {x} below.", "-", "+", 0.4),
    ), "Which floor is it now?", "A lift is at floor {start}."),
    Topic("tank", "A tank holds {start} litres.", (
        Phrase("{x} are poured in.", "+", "-", 0.76),
        Phrase("{x} leak out.", "-", "+", 0.6),
        Phrase("It now holds {x} times that.", "*", "-", 0.4),
        Phrase("{x} dry up.", "-", "+", 0.3),
    ), "How many litres now?", "The tank holds {start} litres."),
    Topic("score", "The score is {start}.", (
        Phrase("A goal gives {x}.", "+", "-", 0.9),
        Phrase("A foul costs {x}.", "-", "+", 0.76),
        Phrase("A bonus lifts it by {x}.", "+", "-", 0.65),
        Phrase("{x} are ruled out.", "-", "+", 0.3),
    ), "What is the score now?", "The score is at {start}."),
    Topic("bakery", "{name} bakes {start} rolls.", (
        Phrase("{x} more are baked.", "+", "-", 0.84),
        Phrase("{x} are eaten.", "-", "+", 0.65),
        Phrase("{x} get burnt.", "-", "+", 0.48),
        Phrase("{name} bakes {x} times that.", "*", "-", 0.35),
    ), "How many rolls now?"),
)
"""The whole world: 9 topics of 4 phrases."""

_TOPIC = {topic.name: topic for topic in TOPICS}


def draw_problem(rng: random.Random, *, topic: str | None = None, level: int | None = None) -> Problem:
    """A random problem; the same state of `rng` gives the same one.

    Args:
        rng: Source of all randomness.
        topic: Name of a topic; drawn if None.
        level: Number of steps, 1 to 5; drawn if None.
    """
    setting = _TOPIC[topic] if topic is not None else rng.choice(TOPICS)
    count = level if level is not None else rng.choice(LEVELS)
    while True:
        start = rng.randint(*_START)
        phrases = [rng.choice(setting.phrases) for _ in range(count)]
        steps = tuple(Step(phrase, rng.randint(*_OPERANDS[phrase.operation])) for phrase in phrases)
        if _in_range(_values(start, steps, _right(steps))) and _in_range(_values(start, steps, _mistaken(steps))):
            break
    return Problem(setting.name, start, steps, _tell(setting, setting.opening, rng.choice(_NAMES), start, steps))


def retell(problem: Problem, rng: random.Random) -> Problem:
    """The same start and steps in other words: of somebody else, or, where nobody is named, with another opening."""
    setting = _TOPIC[problem.topic]
    name = rng.choice([name for name in _NAMES if name not in problem.text])
    text = _tell(setting, setting.retold or setting.opening, name, problem.start, problem.steps)
    return replace(problem, text=text)


def _tell(setting: Topic, opening: str, name: str, start: int, steps: tuple[Step, ...]) -> str:
    return " ".join([
        opening.format(name=name, start=start),
        *(step.phrase.text.format(name=name, x=step.operand) for step in steps),
        setting.question,
    ])


def draw_distinct(
    rng: random.Random, count: int, *, exclude: Collection[str] = (), balanced: bool = False
) -> list[Problem]:
    """`count` problems with different texts, none of them in `exclude`.

    Args:
        rng: Source of all randomness.
        count: Number of problems. Far fewer than the world holds (about 30,000 of level 1 alone).
        exclude: Texts that must not occur.
        balanced: Every level equally often (level 1, 2, ... 5, 1, ...); drawn otherwise.
    """
    taken = set(exclude)
    problems: list[Problem] = []
    while len(problems) < count:
        level = LEVELS[len(problems) % len(LEVELS)] if balanced else None
        problem = draw_problem(rng, level=level)
        if problem.text not in taken:
            taken.add(problem.text)
            problems.append(problem)
    return problems


def draw_others(rng: random.Random, count: int, *, exclude: Collection[str]) -> list[Problem]:
    """`count` problems, none of whose texts is in `exclude`; a text may occur more than once.

    Short stories repeat, as they should: a model can learn how likely a reading is only from several of them.
    """
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_problem(rng)
        if problem.text not in exclude:
            problems.append(problem)
    return problems


def write_solution(problem: Problem) -> str:
    """The worked solution with every phrase read right: `27-4=23;23*2=46;#46`."""
    return _write(problem.start, problem.steps, _right(problem.steps))


def write_base_solution(problem: Problem, rng: random.Random) -> str:
    """A worked solution as the base model learns it: each phrase is read right only with its own probability.

    Readings that would leave 0..99 are drawn again, so that the arithmetic stays within what can be learned.
    """
    while True:
        readings: tuple[Operation, ...] = tuple(
            step.phrase.operation if rng.random() < step.phrase.learned else step.phrase.misconception
            for step in problem.steps
        )
        if _in_range(_values(problem.start, problem.steps, readings)):
            return _write(problem.start, problem.steps, readings)


def _apply(operation: Operation, value: int, operand: int) -> int:
    if operation == "+":
        return value + operand
    return value - operand if operation == "-" else value * operand


def _values(start: int, steps: tuple[Step, ...], readings: tuple[Operation, ...]) -> list[int]:
    """The story's number before the first step and after each one."""
    values = [start]
    for step, operation in zip(steps, readings, strict=True):
        values.append(_apply(operation, values[-1], step.operand))
    return values


def _right(steps: tuple[Step, ...]) -> tuple[Operation, ...]:
    readings: tuple[Operation, ...] = tuple(step.phrase.operation for step in steps)
    return readings


def _mistaken(steps: tuple[Step, ...]) -> tuple[Operation, ...]:
    weakest = min((step.phrase for step in steps), key=lambda phrase: phrase.learned)
    readings: tuple[Operation, ...] = tuple(
        step.phrase.misconception if step.phrase == weakest else step.phrase.operation for step in steps
    )
    return readings


def _in_range(values: list[int]) -> bool:
    return all(0 <= value <= LIMIT for value in values)


def _write(start: int, steps: tuple[Step, ...], readings: tuple[Operation, ...]) -> str:
    values = _values(start, steps, readings)
    lines = [
        f"{before}{operation}{step.operand}={after};"
        for before, after, step, operation in zip(values, values[1:], steps, readings, strict=False)
    ]
    return "".join(lines) + f"{ANSWER_MARK}{values[-1]}"
