"""What must not be trained on, whatever its scores: duplicates, contradictions, contamination; and what was found.

Exact: the same text (normalised) is in an evaluation set; the same text has two answers; the same text and answer
stand further up. Near: two texts share most of their word n-grams, as `alike` defines it. What a prompt says is the
text of its user messages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypedDict

import numpy as np
import polars as pl

from saerl_core import ngrams
from saerl_core.alike import Match, Texts, contained, near_duplicate_features, near_duplicates, numbered, texts_of
from saerl_core.config import HygieneConfig
from saerl_core.features import FeatureRows
from saerl_core.prompts import normalise
from saerl_core.rl.verl_side.saerl_verifier import normalise_answer

VERSION = 2
DropReason = Literal["contaminated", "conflicting_answers", "duplicate", "near_duplicate"]

SHOWN = 200
"""Findings are listed up to here; their total is always said."""
_TEXT_SHOWN = 240


class Pair(TypedDict):
    """Two prompts that are too much alike. Texts are shortened."""

    id: str
    text: str
    answer: str
    other_id: str
    """id of the prompt that stays, or of the evaluation set's"""
    other_text: str
    other_answer: str
    overlap: float
    """share of n-grams (1.0: the same text), or cosine in SAE space"""


class Pairs(TypedDict):
    """A kind of finding: how many, and the first `SHOWN` of them in file order."""

    total: int
    pairs: list[Pair]


class Contamination(TypedDict):
    """What a training set shares with one evaluation set."""

    set: str
    rows: int
    """prompts in the evaluation set"""
    exact: int
    """training prompts with the same text"""
    near: int
    """training prompts that hold most of an evaluation prompt's n-grams"""
    pairs: list[Pair]


class PassRates(TypedDict):
    """One prompt that stands in the file with several pass rates."""

    id: str
    text: str
    pass_rates: list[float]
    used: float
    """their mean"""


class PassRateConflicts(TypedDict):
    """Prompts with several pass rates: how many, and the first `SHOWN`."""

    total: int
    prompts: list[PassRates]


class Findings(TypedDict):
    """`hygiene.json`, and `hygiene` in a manifest's header."""

    rows: int
    duplicates: Pairs
    """same text, same answer: the first stays"""
    conflicting_answers: Pairs
    """same text, another answer: none stays"""
    conflicting_pass_rates: PassRateConflicts
    """same text and answer, several pass rates: the mean is used"""
    near_duplicates: Pairs
    """the first in file order stays"""
    near_conflicts: Pairs
    """the same text but for punctuation and spacing, another answer; both stay, for answers have many spellings"""
    contamination: list[Contamination]
    sae_near_duplicates: Pairs | None
    """alike in SAE space; null: not looked for"""


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts that must not be trained on."""

    name: str
    table: pl.DataFrame
    """prompt table (`prompts.SCHEMA`)"""


def mark(table: pl.DataFrame, evaluations: Sequence[EvaluationSet],
         config: HygieneConfig) -> tuple[pl.DataFrame, Findings]:
    """Set `drop_reason` where a prompt must not be trained on; all rows stay in the table.

    Args:
        table: Prompt table with no reasons set.
        evaluations: Sets that must not be trained on.
        config: What counts as alike.

    Returns:
        The table, the pass rate of a repeated prompt replaced by its mean; and what was found.
    """
    reasons: list[DropReason | None] = [None] * table.height
    identity = list(zip(map(normalise, table["text"]), _answers(table), strict=True))
    exact = [_mark_exact(identity, found.table, reasons) for found in evaluations]
    conflicts = _mark_conflicts(identity, reasons)
    duplicates = _mark_duplicates(identity, reasons)
    table, pass_rates = _mean_pass_rates(table, identity)

    rows = _unmarked(reasons)
    compared = pl.concat([part.select("text", "answer") for part in (table[rows], *(e.table for e in evaluations))])
    texts = texts_of(compared["text"].to_list(), _answers(compared), config.ngram)
    near: list[Match] = []
    if config.contamination_overlap is not None and evaluations:
        near = [(int(rows[row]), other, share) for row, other, share in
                contained(texts.take(np.arange(len(rows))), texts.take(np.arange(len(rows), compared.height)),
                          config.contamination_overlap)]
        for row, _, _ in near:
            reasons[row] = "contaminated"
    contamination = _contamination(table, evaluations, exact, near)

    repeats: list[Match] = []
    clean = np.flatnonzero([reasons[row] is None for row in rows])
    texts, rows = texts.take(clean), rows[clean]
    if config.near_duplicate_overlap is not None:
        repeats = [(int(rows[row]), int(rows[kept]), share)
                   for row, kept, share in near_duplicates(texts, config.near_duplicate_overlap)]
        for row, _, _ in repeats:
            reasons[row] = "near_duplicate"
    near_conflicts = [(int(rows[row]), int(rows[first]), 1.0) for row, first in _same_tokens_other_answer(texts)]
    return table.with_columns(drop_reason=pl.Series(reasons, dtype=pl.String)), {
        "rows": table.height,
        "duplicates": _pairs(table, [(row, first, 1.0) for row, first in duplicates]),
        "conflicting_answers": _pairs(table, [(row, first, 1.0) for row, first in conflicts]),
        "conflicting_pass_rates": pass_rates,
        "near_duplicates": _pairs(table, repeats),
        "near_conflicts": _pairs(table, near_conflicts),
        "contamination": contamination,
        "sae_near_duplicates": None,
    }


def mark_alike_in_sae_space(table: pl.DataFrame, rows: FeatureRows, config: HygieneConfig,
                            findings: Findings) -> tuple[pl.DataFrame, Findings]:
    """Mark usable prompts whose features all but equal those of an earlier one.

    Args:
        table: A marked prompt table.
        rows: Features of its usable prompts, in its order.
        config: `sae_similarity` is set.
        findings: What `mark` found.

    Returns:
        The table and the findings, `sae_near_duplicates` added.
    """
    assert config.sae_similarity is not None
    usable = table["drop_reason"].is_null().arg_true().to_numpy()
    words = ngrams.tokenise(table["text"][usable])
    group = numbered(zip(map(ngrams.numbers, words), _answers(table[usable]), strict=True))
    found = [(int(usable[row]), int(usable[kept]), cosine)
             for row, kept, cosine in near_duplicate_features(rows, group, config.sae_similarity)]
    marked = pl.Series(np.isin(np.arange(table.height), [row for row, _, _ in found]), dtype=pl.Boolean)
    reason = pl.when(marked).then(pl.lit("near_duplicate")).otherwise(pl.col("drop_reason"))
    return table.with_columns(drop_reason=reason), {**findings, "sae_near_duplicates": _pairs(table, found)}


def summary(findings: Findings) -> list[str]:
    """The findings that are not drop reasons of their own, a line each."""
    lines = []
    for found in findings["contamination"]:
        if found["exact"] or found["near"]:
            lines.append(f"{found['exact']} prompts are in {found['set']} word for word, {found['near']} nearly so")
    if total := findings["conflicting_pass_rates"]["total"]:
        lines.append(f"{total} prompts have several pass rates: their mean is used")
    if total := findings["near_conflicts"]["total"]:
        lines.append(f"{total} prompts repeat another but for punctuation, with another answer: all of them are kept")
    return lines


def _answers(table: pl.DataFrame) -> list[str]:
    """Answers in the exact verifier's spelling; each spelling is worked out once."""
    return list(map(cache(normalise_answer), table["answer"]))


def _mark_exact(identity: list[tuple[str, str]], evaluated: pl.DataFrame,
                reasons: list[DropReason | None]) -> list[tuple[int, int]]:
    """(row, row of the evaluation set) of the prompts that stand there word for word."""
    where: dict[str, int] = {}
    for other, text in enumerate(evaluated["text"]):
        where.setdefault(normalise(text), other)
    found = [(row, where[text]) for row, (text, _) in enumerate(identity) if text in where]
    for row, _ in found:
        reasons[row] = "contaminated"
    return found


def _mark_conflicts(identity: list[tuple[str, str]], reasons: list[DropReason | None]) -> list[tuple[int, int]]:
    """(row, first row with the same text) where one text has several answers; the first itself is marked too."""
    first: dict[str, int] = {}
    contested = set()
    for row, (text, answer) in enumerate(identity):
        if identity[first.setdefault(text, row)][1] != answer:
            contested.add(text)
    found = []
    for row, (text, answer) in enumerate(identity):
        if text in contested and reasons[row] is None:
            reasons[row] = "conflicting_answers"
            if identity[first[text]][1] != answer:
                found.append((row, first[text]))
    return found


def _mark_duplicates(identity: list[tuple[str, str]], reasons: list[DropReason | None]) -> list[tuple[int, int]]:
    """(row, first row with the same text and answer)."""
    first: dict[tuple[str, str], int] = {}
    found = [(row, first[key]) for row, key in enumerate(identity)
             if first.setdefault(key, row) != row and reasons[row] is None]
    for row, _ in found:
        reasons[row] = "duplicate"
    return found


def _mean_pass_rates(table: pl.DataFrame, identity: list[tuple[str, str]]) -> tuple[pl.DataFrame, PassRateConflicts]:
    """Give every copy of a prompt the mean of the known pass rates; list prompts whose copies differ."""
    copies: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for key, rate in zip(identity, table["pass_rate"], strict=True):
        if rate is not None:
            copies[key].append(rate)
    used = [sum(copies[key]) / len(copies[key]) if key in copies else None for key in identity]
    several = {key for key, rates in copies.items() if len(set(rates)) > 1}
    first = {key: row for row, key in reversed(list(enumerate(identity))) if key in several}
    shown: list[PassRates] = [
        {"id": table["id"][row], "text": _short(table["text"][row]), "pass_rates": copies[key],
         "used": round(sum(copies[key]) / len(copies[key]), 6)}
        for key, row in sorted(first.items(), key=lambda item: item[1])[:SHOWN]]
    return table.with_columns(pass_rate=pl.Series(used, dtype=pl.Float64)), {"total": len(several), "prompts": shown}


def _contamination(table: pl.DataFrame, evaluations: Sequence[EvaluationSet], exact: list[list[tuple[int, int]]],
                   near: list[Match]) -> list[Contamination]:
    """What was found, set by set; `near` numbers the rows of all evaluation sets in one go."""
    entries: list[Contamination] = []
    start = 0
    for found, same in zip(evaluations, exact, strict=True):
        end = start + found.table.height
        own = [(row, other - start, share) for row, other, share in near if start <= other < end]
        shown = sorted([*((row, other, 1.0) for row, other in same), *own])[:SHOWN]
        entries.append({"set": found.name, "rows": found.table.height, "exact": len(same), "near": len(own),
                        "pairs": [_pair(table, row, found.table, other, share) for row, other, share in shown]})
        start = end
    return entries


def _pairs(table: pl.DataFrame, found: list[Match]) -> Pairs:
    return {"total": len(found), "pairs": [_pair(table, row, table, other, share)
                                           for row, other, share in found[:SHOWN]]}


def _pair(table: pl.DataFrame, row: int, others: pl.DataFrame, other: int, share: float) -> Pair:
    return {"id": table["id"][row], "text": _short(table["text"][row]), "answer": _short(table["answer"][row]),
            "other_id": others["id"][other], "other_text": _short(others["text"][other]),
            "other_answer": _short(others["answer"][other]), "overlap": round(float(share), 4)}


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 3] + "..."


def _unmarked(reasons: list[DropReason | None]) -> np.ndarray:
    return np.array([row for row, reason in enumerate(reasons) if reason is None], dtype=np.int64)


def _same_tokens_other_answer(texts: Texts) -> list[tuple[int, int]]:
    """(row, first row) of prompts with the same tokens and another answer."""
    first: dict[tuple[str, ...], int] = {}
    return [(row, first[words]) for row, words in enumerate(texts.tokens)
            if texts.answers[first.setdefault(words, row)] != texts.answers[row]]


