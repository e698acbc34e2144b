"""Difficulty: the proxy, what it is worth on held-out prompts, and the evidence that corrects it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from saerl_core.report import calibration
from saerl_core.report.facts import held_out, part
from saerl_core.report.markup import count, figure, percent, sentence, svg

if TYPE_CHECKING:
    from saerl_core.manifest import Curation

_LEVELS = 12


def section(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    """What `difficulty.html.jinja` prints."""
    report = part(header, "difficulty")
    words = "How hard a prompt is for the policy: what 1 − its pass rate is believed to be. "
    words += ("The order of training follows it." if report.get("used") else
              sentence(report.get("why") or "No prediction was made: every prompt counts as equally hard"))
    drawings, captions = [], []
    for made, caption in (_held_out(report), _everywhere(header, curation)):
        drawings += made
        captions.append(caption)
    return {"words": words, "evidence": _evidence(header), "drawings": drawings,
            "caption": " ".join(filter(None, captions)), "facts": _facts(header)}


def _held_out(report: Mapping[str, Any]) -> tuple[list[Markup], str]:
    """Labelled prompts, each predicted by a proxy that has not seen it."""
    from saerl_core.report.figures import scores as figures

    pairs = report.get("held_out") or []
    if not pairs:
        return [], ""
    predicted, measured = np.asarray(pairs, dtype=np.float64).T
    drawings = [
        svg(figures.held_out_difficulty(pairs), "Predicted against measured difficulty of held-out prompts"),
        svg(figures.reliability(calibration.bins(predicted, measured), "predicted difficulty", "measured, mean"),
            "Calibration: mean measured difficulty of held-out prompts in bins of predicted difficulty, with counts"),
    ]
    caption = ("Each labelled prompt is predicted by a proxy that has not seen it. On the dashed line, prediction and "
               "measurement agree; for the order of training it is enough that the orange line rises. Bars of the "
               "orange line: 95% intervals; below, the prompts of each bin.")
    if len(pairs) > figures.DRAWN_DOTS:
        caption += f" {count(figures.DRAWN_DOTS)} of {count(len(pairs))} dots are drawn; the means are of all."
    return drawings, caption


def _everywhere(header: Mapping[str, Any], curation: Curation) -> tuple[list[Markup], str]:
    """All prompts: their distribution, and the data set's own levels."""
    from saerl_core.report.figures import scores as figures

    score, known = curation.difficulty, ~np.isnan(curation.difficulty)
    trained = curation.table["drop_reason"].is_null().to_numpy()
    if not part(header, "difficulty").get("used") or not (trained & known).any():
        return [], ""
    drawings = [svg(figures.predicted_difficulty(score[trained & known], score[~trained & known]),
                    "Histogram of difficulty, trained on and left out")]
    level = curation.table["level"].cast(float).fill_null(float("nan")).to_numpy()
    both = known & ~np.isnan(level)
    if not 2 <= len(np.unique(level[both])) <= _LEVELS:
        return drawings, ""
    drawings.append(svg(figures.difficulty_by_level(level[both], score[both]),
                        "Difficulty at each level of the data set"))
    fitted = (part(header, "labels").get("source") == "level"
              or part(header, "difficulty").get("method") == "level")
    return drawings, "" if fitted else "The data set's levels had no part in the fit."


def _evidence(header: Mapping[str, Any]) -> str:
    """Which prompts' predictions are corrected, and how far."""
    report, labels, settings = (part(header, *path) for path in (("difficulty",), ("labels",),
                                                                 ("settings", "difficulty")))
    strength, words = settings.get("prior_strength"), []
    if labels.get("count") and labels.get("samples"):
        words.append(f"{count(labels['count'], 'prompt')} with {labels['samples']} sampled answers each")
    if report.get("observed"):
        words.append(f"{count(report['observed'], 'prompt')} whose answers were seen in an earlier training")
    if words and strength:
        return (f"Evidence corrects the prediction of {' and '.join(words)}: a Beta posterior in which the prediction "
                f"weighs as much as {strength:g} answers.")
    return ("Labels whose number of answers is not known stand as they are, in place of the prediction."
            if labels.get("count") and not labels.get("samples") else "")


def _facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    report, labels = part(header, "difficulty"), part(header, "labels")
    pairs = report.get("held_out") or []
    facts = []
    if report.get("method"):
        facts.append(("method", str(report["method"]).replace("_", " ")))
    facts.append(("labelled prompts", count(report.get("labels") or labels.get("count") or 0)))
    if labels.get("source"):
        facts.append(("labels from", f"{labels['source']} ({labels['target']})" if labels.get("target")
                      else str(labels["source"])))
    if labels.get("samples"):
        facts.append(("answers per prompt", count(labels["samples"])))
    if labels.get("doubtful"):
        facts.append(("doubtful labels, not used", count(labels["doubtful"])))
    rate = labels.get("mean_pass_rate", report.get("mean_pass_rate"))
    facts += [("mean pass rate", "–" if rate is None else percent(rate)),
              ("held-out Spearman", held_out(report, "spearman"))]
    if pairs:
        error = calibration.expected_error(calibration.bins(*np.asarray(pairs, dtype=np.float64).T))
        facts.append(("expected calibration error", figure(error, 3)))
    if report.get("features") is not None:
        facts.append(("features with a weight", count(report["features"])))
    facts.append(("prompts with answers seen in training", count(report.get("observed") or 0)))
    return facts
