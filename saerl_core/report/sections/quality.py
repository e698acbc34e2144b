"""Quality: the probe that tells good prompts from bad ones, and the likelihood of answers; each has its gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_core.report import calibration
from saerl_core.report.facts import held_out, part
from saerl_core.report.markup import count, figure, percent, sentence, svg

if TYPE_CHECKING:
    from saerl_core.manifest import Curation

_BAD = {"corruptions": "copies of them that were damaged on purpose", "column": "those that a column calls bad",
        "rollouts": "those that were never solved"}

_JUDGED_BY = {
    "agreement": "What a prompt's rewards would teach the policy, compared with what its nearest neighbours teach: a "
                 "wrong key pulls against them.",
    "likelihood": "The policy's likelihood of each answer.",
}


def section(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    """What `quality.html.jinja` prints."""
    from saerl_core.report.figures import scores as figures

    report, settings = part(header, "quality"), part(header, "settings", "quality")
    used, share = bool(report.get("used")), settings.get("drop_share")
    threshold = report.get("threshold") if used and share is None else None
    bad = _BAD.get(report.get("labels", "corruptions"), "bad ones")
    words = f"Whether a prompt is good, judged by a probe that learned to tell good prompts from {bad}. "
    if report.get("method") == "random":
        words = sentence(report["why"])
    elif not used:
        words += sentence(report.get("why") or "There is no such probe in this run: nothing is filtered")
    elif share is not None:
        words += f"The worst {percent(share, 0)} of the prompts are dropped."
    else:
        words += f"Prompts that score below {threshold:.2f} are dropped." if threshold is not None else "It is in use."
    drawings, kinds, facts = [], [], []
    if pairs := report.get("held_out"):
        score = np.array([value for value, _ in pairs], dtype=np.float64)
        kind = np.array([name for _, name in pairs], dtype=object)
        good = kind == "intact"
        bins = calibration.bins(score, good.astype(np.float64))
        drawings = [svg(figures.held_out_quality(score[good], score[~good], threshold),
                        "Histogram of quality scores of held-out prompts, good and bad"),
                    svg(figures.reliability(bins, "quality score", "share that is good"),
                        "Calibration: share of good prompts in bins of the quality score, with counts")]
        kinds = _kinds(report, score, kind, threshold)
        facts = [("held-out AUC", held_out(report, "auc", 3)), ("training AUC", figure(report.get("auc_train"), 3)),
                 ("expected calibration error", figure(calibration.expected_error(bins), 3)),
                 ("good and bad prompts", f"{count(report.get('good') or 0)} and {count(report.get('bad') or 0)}"),
                 ("method", str(report.get("method")))]
        if aside := report.get("set_aside"):
            facts.append(("own prompts set aside", count(aside)))
    scores = curation.quality[~np.isnan(curation.quality)]
    if used and len(scores):
        drawings.append(svg(figures.quality_of_prompts(scores, threshold), "Histogram of the prompts' quality scores"))
    return {"words": words, "drawings": drawings, "kinds": kinds, "facts": facts,
            "caption": _caption(report, threshold), "column": "" if threshold is None else f"below {threshold:.2f}",
            "suspicion": _suspicion(header)}


def _kinds(report: Mapping[str, Any], score: np.ndarray, kind: np.ndarray,
           threshold: float | None) -> list[dict[str, Any]]:
    """A line for each kind of damage, then for all of them, then for the good ones."""
    good = kind == "intact"

    def line(name: str, rows: np.ndarray, auc: float | None) -> dict[str, Any]:
        below = percent(float((score[rows] < threshold).mean())) if threshold is not None and rows.any() else "–"
        return {"name": name.replace("_", " "), "count": int(rows.sum()), "auc": auc, "caught": below}

    by_kind = report.get("auc_by_kind") or {}
    return [*(line(name, kind == name, by_kind[name]) for name in sorted(by_kind, key=lambda name: -by_kind[name])),
            line("all bad ones", ~good, report.get("auc")), line("good prompts", good, None)]


def _caption(report: Mapping[str, Any], threshold: float | None) -> str:
    words = []
    if report.get("set_aside"):
        words.append("Own prompts that look damaged to a probe fitted on the others are set aside: nothing is learned "
                     "from them.")
    if threshold is not None:
        words.append("A score below the threshold drops a prompt: of bad ones more is better, of good prompts less.")
    if report.get("labels", "corruptions") == "corruptions":
        words.append("Calibration is on a made-up mixture, one damaged copy to each intact prompt; in the data itself "
                     "bad prompts are rarer, so that more of the low scores there are of good prompts.")
    return " ".join([*words, "The probe cannot see a wrong answer key: that is not in the prompt."])


def _suspicion(header: Mapping[str, Any]) -> dict[str, Any] | None:
    """The gate of `quality.suspect_answers`; None where it was not asked for."""
    from saerl_core.report.figures import scores as figures

    report = part(header, "suspicion")
    if not report:
        return None
    dropped = header["prompts"]["dropped_by_reason"].get("suspect_answer", 0)
    words = f"{_JUDGED_BY[report['by']]} Tried on keys that were made wrong on purpose. {sentence(report['why'])}"
    if report["used"]:
        words += f" {count(dropped, 'prompt')} dropped."
    judged = f"{count(report['judged'])} of {count(report['looked_at'])}"
    drawing = None
    if report["shown"]:
        doubt = np.array(report["shown"], dtype=np.float64)
        own, wrong = -doubt.T if report["by"] == "agreement" else np.exp(-doubt.T)
        drawing = svg(figures.keys(own, wrong, report["by"]),
                      "Histogram of what speaks for the prompts' own keys and for keys made wrong")
    facts = [("AUC, own keys against made wrong", held_out(report, "auc", 3)),
             ("keys that were also made wrong", count(report["pairs"])), ("keys that could be judged", judged),
             ("prompts dropped", count(dropped))]
    return {"words": words, "drawing": drawing, "facts": facts}
