"""What a manifest's header says, in words: what the page, its short form and the terminal have in common.

Optional parts of the header may be missing or None; then there is less to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from saerl_core.report.markup import count, figure, interval, percent, sentence, shorten, signed

if TYPE_CHECKING:
    from saerl_core.manifest import Curation


@dataclass(frozen=True)
class Decision:
    """What one of the three signals decides."""

    name: str
    used: bool
    words: str


def part(header: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A nested part of the header; empty where the run has none."""
    found: Any = header
    for name in path:
        found = found.get(name) or {}
    return found


def data_name(header: Mapping[str, Any]) -> str:
    """What the data set is called."""
    return shorten(str(part(header, "inputs", "data").get("name") or "prompts"), 80)


def lead(header: Mapping[str, Any], curation: Curation) -> str:
    """The whole curation in two sentences."""
    prompts = header["prompts"]
    per_epoch = int((curation.schedule.epoch == 0).sum())
    again = header["batches"] > per_epoch
    words = (f"Of {count(prompts['read'], 'prompt')} read, {count(prompts['kept'])} are trained on, in "
             f"{count(header['batches'], 'batch', 'batches')} of {header['batch_size']}"
             + (f"; one pass over all of them takes {per_epoch}." if again else "."))
    mean = batch_difficulty(curation)
    if mean is None:
        return words + " All of them count as equally hard, so the order follows the clusters alone."
    if part(header, "settings", "schedule").get("order") == "random":
        return words + f" Their order is random, their mean predicted difficulty {mean.mean():.2f}."
    first_pass = mean[:per_epoch]
    quarter = max(1, per_epoch // 4)
    return words + (f" Mean predicted difficulty goes from {first_pass[:quarter].mean():.2f} in the first quarter "
                    f"{'of a pass ' if again else ''}to {first_pass[-quarter:].mean():.2f} in the last.")


def warnings(header: Mapping[str, Any]) -> list[str]:
    """What a person must not miss: closed gates, the SAE's health, notes of the stages."""
    gates = {"Difficulty": "difficulty", "Quality": "quality", "The look at answer keys": "suspicion"}
    found = [sentence(f"{name} is not used: {report['why']}")
             for name, report in ((name, part(header, key)) for name, key in gates.items())
             if report and not report.get("used") and report.get("method") != "none"]
    found += [sentence(text) for text in part(header, "health").get("warnings") or ()]
    notes = [*(header.get("notes") or ()), part(header, "quality").get("note")]
    found += [sentence(text) for text in dict.fromkeys(notes) if text]
    return found


def decisions(header: Mapping[str, Any], curation: Curation) -> list[Decision]:
    """What each of the three signals decides here, and on what evidence."""
    sizes = part(header, "clusters").get("sizes") or []
    several = mixture(curation)
    diversity = (f"{count(len(sizes), 'cluster')}, the largest with {percent(max(sizes) / max(sum(sizes), 1))} of the "
                 f"prompts; a batch holds {several.mean():.1f} of them on average ({several.min()} to {several.max()})."
                 if len(sizes) > 1 else "One cluster: which prompts share a batch follows from difficulty alone."
                 if sizes else "No clusters.")
    made = [Decision("Diversity", len(sizes) > 1, diversity)]
    for key in ("difficulty", "quality"):
        report = part(header, key)
        used = bool(report.get("used"))
        words = sentence(report.get("why") or "not part of this run")
        if key == "quality" and used:
            words += _quality_drops(header)
        made.append(Decision(key.capitalize(), used, words))
    return made


def findings(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line each on the answers, hygiene, coverage, the number of clusters, drift, and overlap."""
    lines = [("hygiene", _hygiene(header)), ("coverage", _coverage(header)), ("overlap", overlap_words(header))]
    if why := part(header, "suspicion").get("why"):
        lines.insert(0, ("answers", sentence(why)))
    if choice := part(header, "clusters", "choice"):
        lines.append(("clusters", f"{choice['k']}, chosen by stability from {len(choice['curve'])} numbers tried."))
    if part(header, "clusters", "drift"):
        lines.append(("drift", drift_words(header)))
    return [(name, words) for name, words in lines if words]


def drift_words(header: Mapping[str, Any]) -> str:
    """How far the prompts are from a previous manifest's clusters; empty where there was none."""
    drift = part(header, "clusters", "drift")
    if not drift:
        return ""
    kept = "kept" if part(header, "clusters").get("kept") else "made anew"
    return (f"Mean similarity to the previous manifest's centroids {figure(drift['similarity'], 3)}, "
            f"{figure(drift['similarity_at_fit'], 3)} when they were fitted (a fall of "
            f"{percent(drift['similarity_drop'])}); divergence of the clusters' shares "
            f"{figure(drift['share_divergence'], 3)}. The clusters were {kept}.")


def overlap_words(header: Mapping[str, Any]) -> str:
    """Intra-batch overlap of this order against the same prompts shuffled; the interval is over the batches."""
    found = part(header, "batches_overlap")
    ours, shuffled = (np.asarray(found.get(name) or [], dtype=np.float64) for name in ("ours", "shuffled"))
    if not len(ours):
        return ""
    words = f"Mean cosine of two prompts of a batch {figure(ours.mean(), 3)}, shuffled {figure(shuffled.mean(), 3)}"
    if len(ours) < 2:
        return words + "."
    gap = ours - shuffled
    reach = student.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / math.sqrt(len(gap))
    low, high = gap.mean() - reach, gap.mean() + reach
    verdict = ("more alike than by chance" if low > 0 else "less alike than by chance" if high < 0
               else "no different from chance")
    return (f"{words}: difference {signed(gap.mean(), 3)} (95% interval {signed(low, 3)} to {signed(high, 3)}), "
            f"{verdict}.")


def mixture(curation: Curation) -> np.ndarray:
    """int [batches]: clusters in each batch."""
    return np.array([len(np.unique(row)) for row in curation.cluster[curation.schedule.batches]])


def batch_difficulty(curation: Curation) -> np.ndarray | None:
    """float [batches], mean predicted difficulty; None where difficulty tells no prompts apart."""
    drawn = curation.difficulty[curation.schedule.batches]
    if np.isnan(drawn).any() or np.ptp(drawn) == 0:
        return None
    return drawn.mean(axis=1)


def cluster_count(header: Mapping[str, Any], curation: Curation) -> int:
    """Number of clusters, empty ones included: it decides each cluster's colour."""
    return max(len(part(header, "clusters").get("sizes") or []), int(curation.cluster.max(initial=-1)) + 1)


def trained_per_cluster(curation: Curation, k: int) -> list[int]:
    """How many prompts of each cluster are trained on."""
    trained = curation.table["drop_reason"].is_null().to_numpy()
    return np.bincount(curation.cluster[trained & (curation.cluster >= 0)], minlength=k).tolist()


def held_out(report: Mapping[str, Any], name: str, decimals: int = 2) -> str:
    """A held-out figure of a probe's report with its interval."""
    return interval(report.get(name), report.get(f"{name}_low"), report.get(f"{name}_high"), decimals)


def _quality_drops(header: Mapping[str, Any]) -> str:
    """What the probe costs: the share of held-out good prompts that it would drop as well."""
    words = f" {count(header['prompts']['dropped_by_reason'].get('low_quality', 0), 'prompt')} dropped"
    report, settings = part(header, "quality"), part(header, "settings", "quality")
    good = [score for score, kind in report.get("held_out") or () if kind == "intact"]
    if good and settings.get("drop_share") is None and (threshold := report.get("threshold")) is not None:
        low = sum(score < threshold for score in good) / len(good)
        words += f"; of good held-out prompts, {percent(low)} score as low"
    return words + "."


def _hygiene(header: Mapping[str, Any]) -> str:
    found = part(header, "hygiene")
    if not found:
        return ""
    kinds = {"duplicates": "duplicates", "near_duplicates": "near duplicates",
             "conflicting_answers": "pairs with conflicting answers", "sae_near_duplicates": "alike in SAE space"}
    counts = [f"{count(found[kind]['total'])} {words}" for kind, words in kinds.items() if found.get(kind)]
    shared = [f"{count(entry['exact'] + entry['near'])} shared with {shorten(entry['set'], 40)} "
              f"({count(entry['exact'])} word for word)" for entry in found["contamination"]]
    return f"{', '.join([*counts, *shared])}." + ("" if shared else " No evaluation set was given.")


def _coverage(header: Mapping[str, Any]) -> str:
    coverage = part(header, "settings", "coverage")
    if not coverage.get("budget"):
        return ""
    passed_over = header["prompts"]["dropped_by_reason"].get("not_selected", 0)
    return (f"Budget of {count(coverage['budget'], 'prompt')}, chosen by {coverage['method'].replace('_', ' ')}; "
            f"{count(passed_over)} passed over.")
