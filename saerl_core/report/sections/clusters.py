"""Clusters: how many, how large, how stable, how far from those of before, and what each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_core.report import facts as say
from saerl_core.report.facts import part
from saerl_core.report.markup import count, figure, percent, shorten, svg

if TYPE_CHECKING:
    from saerl_core.manifest import Curation

_CARDS = 64


@dataclass(frozen=True)
class _Card:
    number: int
    colour: str
    size: int
    facts: list[str]
    features: list[tuple[int, float]]
    nearest: list[str]


def section(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    """What `clusters.html.jinja` prints."""
    from saerl_core.report.figures import clusters as figures

    found = part(header, "clusters")
    sizes, cards = list(found.get("sizes") or []), list(found.get("cards") or [])
    if not sizes:
        return {"words": "No clusters.", "sizes": "", "choice": "", "choice_words": "", "facts": [], "cards": [],
                "hidden": 0}
    trained = say.trained_per_cluster(curation, len(sizes))
    colours = figures.cluster_colours(say.cluster_count(header, curation))
    shown = sorted(cards, key=lambda card: (-card["size"], card["cluster"]))[:_CARDS]
    choice = found.get("choice") or {}
    curve = choice.get("curve") or []
    return {
        "words": "Prompts in which the same features fire stand together. " + _history(header),
        "sizes": svg(figures.cluster_sizes(sizes, trained, colours), "Cluster sizes"),
        "choice": svg(figures.stability(curve, choice["k"]), "Stability of each number of clusters") if curve else "",
        "choice_words": _choice_words(choice),
        "facts": _balance(sizes),
        "cards": [_card(card, curation, colours[card["cluster"]], trained[card["cluster"]]) for card in shown],
        "hidden": len(cards) - len(shown),
    }


def _history(header: Mapping[str, Any]) -> str:
    """Where the clusters come from."""
    iterations = part(header, "clusters").get("iterations") or 0
    return say.drift_words(header) or f"k-means took {count(iterations)} iterations, restarts included."


def _choice_words(choice: Mapping[str, Any]) -> str:
    if not choice:
        return ""
    if not choice["curve"]:
        return f"There were too few prompts to judge how many clusters are stable: k = {choice['k']}."
    return (f"clusters.k is auto: two halves of the prompts were clustered apart, for each k. The adjusted mutual "
            f"information of both is 1 where they find the same clusters, 0 where they agree by chance. {choice['k']} "
            "is the largest k within one standard error of the best.")


def _balance(sizes: Sequence[int]) -> list[tuple[str, str]]:
    """The effective number is the exponential of the entropy of the shares (Hill 1973, Ecology 54)."""
    share = np.asarray(sizes, dtype=np.float64) / max(sum(sizes), 1)
    share = share[share > 0]
    return [("clusters", count(len(sizes))), ("smallest", count(min(sizes), "prompt")),
            ("largest", f"{count(max(sizes), 'prompt')}, {percent(share.max(initial=0))}"),
            ("effective number", figure(float(np.exp(-(share * np.log(share)).sum())), 1))]


def _card(card: Mapping[str, Any], curation: Curation, colour: str, trained: int) -> _Card:
    members = np.flatnonzero(curation.cluster == card["cluster"])
    facts = [f"{count(trained)} trained on"]
    hard = curation.difficulty[members]
    if len(hard) and not np.isnan(hard).all() and np.nanmax(curation.difficulty) > np.nanmin(curation.difficulty):
        facts.append(f"difficulty {np.nanmean(hard):.2f}")
    subjects = curation.table["subject"][members].drop_nulls().value_counts(sort=True)
    if subjects.height:
        subjects = subjects.sort(["count", "subject"], descending=[True, False])
        known = int(subjects["count"].sum())
        of = "" if known == len(members) else f" (of {count(known)} with a subject)"
        facts.append(f"{percent(subjects['count'][0] / known, 0)} {shorten(subjects['subject'][0], 32)}{of}")
    texts = [shorten(str(curation.table["text"][int(row)]), 150) for row in card.get("nearest") or ()]
    return _Card(int(card["cluster"]), colour, int(card["size"]), facts,
                 [(int(feature), float(lift)) for feature, lift in card.get("features") or ()], texts[:3])
