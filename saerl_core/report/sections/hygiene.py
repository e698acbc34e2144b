"""Hygiene: copies, contradictions, and what is shared with evaluation sets, with the matched texts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saerl_core.report.facts import part
from saerl_core.report.markup import count, figure, shorten

_PAIRS = 25
"""Pairs shown of each kind; the header holds more of them."""
_KINDS = {
    "near_duplicates": ("near duplicates", "the first in the file stays", "share of n-grams"),
    "sae_near_duplicates": ("alike in SAE space", "the first in the file stays", "cosine"),
    "conflicting_answers": ("pairs with conflicting answers", "one text, several answers: none of them stays",
                            "share of n-grams"),
    "near_conflicts": ("pairs with nearly conflicting answers",
                       "the same text but for punctuation, another answer: both stay, for answers have many spellings",
                       "share of n-grams"),
}


@dataclass(frozen=True)
class _Pairs:
    name: str
    words: str
    measure: str
    headings: tuple[str, str]
    total: int
    pairs: list[dict[str, str]]


def section(header: Mapping[str, Any]) -> dict[str, Any]:
    """What `hygiene.html.jinja` prints."""
    found = part(header, "hygiene")
    if not found:
        return {"words": "This manifest does not say what was compared.", "facts": [], "kinds": [], "pass_rates": None}
    kinds = [_pairs(f"shared with {shorten(entry['set'], 60)}",
                    f"{count(entry['exact'])} word for word, {count(entry['near'])} nearly so; none of them is trained "
                    f"on", "share of n-grams", ("prompt", shorten(entry["set"], 60)), entry["exact"] + entry["near"],
                    entry["pairs"]) for entry in found["contamination"]]
    kinds += [_pairs(name, words, measure, ("prompt", "earlier prompt"), found[kind]["total"], found[kind]["pairs"])
              for kind, (name, words, measure) in _KINDS.items() if found.get(kind)]
    rates = found["conflicting_pass_rates"]
    facts = [("prompts compared", count(found["rows"])),
             ("exact duplicates", count(found["duplicates"]["total"])),
             *((kind.name, count(kind.total)) for kind in kinds),
             ("several pass rates", count(rates["total"]))]
    return {"words": _words(found), "facts": facts, "kinds": [kind for kind in kinds if kind.total],
            "pass_rates": _pass_rates(rates) if rates["total"] else None}


def _words(found: Mapping[str, Any]) -> str:
    sets = found["contamination"]
    against = (f"and with {count(len(sets), 'evaluation set')} of {count(sum(entry['rows'] for entry in sets))} prompts"
               if sets else "no evaluation set was given, so contamination was not looked for")
    return f"Each prompt was compared with all others, {against}. What was found left before anything was scored."


def _pairs(name: str, words: str, measure: str, headings: tuple[str, str], total: int,
           pairs: Sequence[Mapping[str, Any]]) -> _Pairs:
    shown = [{"text": shorten(pair["text"], 240), "answer": shorten(pair["answer"], 60), "id": shorten(pair["id"], 40),
              "other_text": shorten(pair["other_text"], 240), "other_answer": shorten(pair["other_answer"], 60),
              "other_id": shorten(pair["other_id"], 40), "overlap": figure(pair["overlap"])}
             for pair in pairs[:_PAIRS]]
    return _Pairs(name, words, measure, headings, total, shown)


def _pass_rates(rates: Mapping[str, Any]) -> dict[str, Any]:
    return {"total": rates["total"], "prompts": [
        {"text": shorten(prompt["text"], 240), "id": shorten(prompt["id"], 40), "used": figure(prompt["used"]),
         "rates": ", ".join(map(figure, prompt["pass_rates"]))} for prompt in rates["prompts"][:_PAIRS]]}
