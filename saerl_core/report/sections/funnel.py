"""From the file to the training set: what was left out, for which reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_core.report.markup import shorten

if TYPE_CHECKING:
    from saerl_core.manifest import Curation

_SAMPLES = 8

REASONS = {
    "duplicate": "The same prompt with the same answer stands earlier in the file.",
    "conflicting_answers": "One text with two answers: nobody can tell which of them is right.",
    "near_duplicate": "All but the same as an earlier prompt: same numbers, same answer, nearly the same words.",
    "contaminated": "The prompt is also in an evaluation set, word for word or nearly so.",
    "unverifiable_answer": "The verifier does not accept the reference as its own answer: no response can be rewarded.",
    "too_long": "Longer than policy.max_prompt_tokens: the trainer would cut it.",
    "doubtful_label": "Never solved, and there is a sign that this is the grader's failure (labels.drop_doubtful).",
    "suspect_answer": "Its answer key is among those that are most likely wrong (quality.suspect_answers).",
    "low_quality": "Its quality is among the lowest (quality.threshold or quality.drop_share). Worst first.",
    "too_easy": "Predicted easier than schedule.min_difficulty. Easiest first.",
    "too_hard": "Predicted harder than schedule.max_difficulty. Hardest first.",
    "not_selected": "Passed over by coverage selection: prompts like it are kept.",
    "beyond_steps": "More than schedule.steps batches can hold; every cluster gives its share.",
    "remainder": "Too few to fill one more batch.",
}
"""Drop reasons in the order in which the stages apply them."""


@dataclass(frozen=True)
class _Sample:
    text: str
    answer: str
    id: str
    note: str


@dataclass(frozen=True)
class _Drop:
    name: str
    meaning: str
    count: int
    share: float
    start: float
    """where its bar begins, in percent of what was read"""
    width: float
    samples: list[_Sample]


def section(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    """What `funnel.html.jinja` prints."""
    prompts = header["prompts"]
    return {"read": max(prompts["read"], 1), "kept": prompts["kept"], "drops": _drops(prompts, curation)}


def _drops(prompts: Mapping[str, Any], curation: Curation) -> list[_Drop]:
    by_reason, left = prompts["dropped_by_reason"], prompts["read"]
    dropped = curation.table["drop_reason"].to_list()
    rows_of: dict[str, list[int]] = {}
    for row, reason in enumerate(dropped):
        if reason is not None:
            rows_of.setdefault(reason, []).append(row)
    made = []
    for reason in [*(name for name in REASONS if name in by_reason), *sorted(set(by_reason) - set(REASONS))]:
        number = by_reason[reason]
        left -= number
        made.append(_Drop(
            name=reason.replace("_", " "), meaning=REASONS.get(reason, ""), count=number,
            share=number / prompts["read"], start=100 * left / prompts["read"], width=100 * number / prompts["read"],
            samples=[_sample(curation, row) for row in _telling(rows_of.get(reason, []), reason, curation)],
        ))
    return made


def _telling(rows: Sequence[int], reason: str, curation: Curation) -> list[int]:
    """Some of the rows: the extreme ones where a score decided, else evenly through the file."""
    if reason == "low_quality":
        return sorted(rows, key=lambda row: curation.quality[row])[:_SAMPLES]
    if reason in ("too_easy", "too_hard"):
        return sorted(rows, key=lambda row: curation.difficulty[row], reverse=reason == "too_hard")[:_SAMPLES]
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLES)).round().astype(int)
    return [rows[i] for i in chosen]


def _sample(curation: Curation, row: int) -> _Sample:
    text, answer, name = (str(curation.table[column][row]) for column in ("text", "answer", "id"))
    scores = [(label, values[row]) for label, values in (("quality", curation.quality),
                                                         ("difficulty", curation.difficulty))]
    note = "".join(f" · {label} {value:.2f}" for label, value in scores if not np.isnan(value))
    return _Sample(shorten(text, 280), shorten(answer, 60), shorten(name, 40), note)
