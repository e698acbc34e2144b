"""Damage done on purpose to a user's own prompts: negatives for a quality probe, with no label to be had."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saerl_core.config import CorruptionKind
from saerl_core.hashing import hash_value
from saerl_core.labels import draw

_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Corruption:
    """A damaged copy of one prompt."""

    row: int
    """row of the original"""
    kind: CorruptionKind
    messages: Messages


def _garbled_words(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def _garbled_letters(text: str, rng: random.Random) -> str:
    kept = (rng.choice(_LETTERS) if char.isalpha() and rng.random() < 0.15 else char
            for char in text if not (char.isalpha() and rng.random() < 0.1))
    return "".join(kept)


def _truncated(text: str, rng: random.Random) -> str:
    words = text.split()
    return " ".join(words[: max(1, round(len(words) * rng.uniform(0.3, 0.7)))])


def _question_removed(text: str, _rng: random.Random) -> str:
    sentences = _SENTENCE_END.split(text.strip())
    asking = [i for i, sentence in enumerate(sentences) if sentence.endswith("?")]
    last = asking[-1] if asking else len(sentences) - 1
    return " ".join(sentences[:last] + sentences[last + 1 :])


def _numbers_removed(text: str, _rng: random.Random) -> str:
    return " ".join(_NUMBER.sub("", text).split())


_DAMAGE: dict[CorruptionKind, Callable[[str, random.Random], str]] = {
    "garbled_words": _garbled_words,
    "garbled_letters": _garbled_letters,
    "truncated": _truncated,
    "question_removed": _question_removed,
    "numbers_removed": _numbers_removed,
}


def corrupt(text: str, kind: CorruptionKind, rng: random.Random) -> str | None:
    """A damaged copy of `text`; None where this damage leaves it unchanged or empty."""
    damaged = _DAMAGE[kind](text, rng)
    return damaged if damaged.strip() and damaged.split() != text.split() else None


def make(prompts: Sequence[Messages], kinds: Sequence[CorruptionKind], count: int, seed: int,
         instruction: str = "") -> list[Corruption]:
    """Damaged copies of `count` prompts, one each, the kinds in about equal shares as far as the prompts allow.

    Which prompts, and what damage, hangs on each prompt's own text and the seed: a set that grows by a few prompts
    keeps nearly all of its damaged copies.

    Args:
        prompts: Chat messages of n prompts.
        kinds: Kinds of damage.
        count: Copies wanted; at most n.
        seed: Seed of the choice and of the damage.
        instruction: What the run appended to each prompt: it stays intact.
    """
    lots = [draw(hash_value(messages), seed) for messages in prompts]
    made = []
    for row in sorted(range(len(prompts)), key=lambda row: (lots[row], row))[:count]:
        rng, turn = random.Random(lots[row]), lots[row] % len(kinds)
        messages = [dict(message) for message in prompts[row]]
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        content = messages[last]["content"]
        suffix = "\n" + instruction if instruction and content.endswith("\n" + instruction) else ""
        text = content.removesuffix(suffix)
        for step in range(len(kinds)):  # a text without numbers cannot lose them: the next kind takes its turn
            kind = kinds[(turn + step) % len(kinds)]
            if (damaged := corrupt(text, kind, rng)) is not None:
                messages[last]["content"] = damaged + suffix
                made.append(Corruption(row, kind, messages))
                break
    return made
