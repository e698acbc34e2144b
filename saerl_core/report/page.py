"""A manifest as a page: what was read, what is trained on and in which order, and what each decision rests on.

The template only prints. What it prints is put together here, section by section. A part of the header that a run
does not have (no labels, a probe that is switched off) becomes a sentence that says so, not a hole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from saerl_core.report.markup import count, drawing, figure, percent, shorten
from saerl_core.report.markup import render as fill

if TYPE_CHECKING:
    from saerl_core.manifest import Curation

_SAMPLES = 8
_CARDS = 64
_LEVELS = 12

REASONS = {
    "duplicate": "The same prompt with the same answer stands earlier in the file.",
    "conflicting_answers": "One text with two answers: nobody can tell which of them is right.",
    "near_duplicate": "All but the same as an earlier prompt: same numbers, same answer, nearly the same words.",
    "contaminated": "The prompt is also in an evaluation set, word for word or nearly so.",
    "unverifiable_answer": "The verifier does not accept the reference as its own answer: no response can be rewarded.",
    "too_long": "Longer than policy.max_prompt_tokens: the trainer would cut it.",
    "doubtful_label": "Never solved, and there is a sign that this is the grader's failure (labels.drop_doubtful).",
    "suspect_answer": "Its answer is among those that the policy finds least likely (quality.suspect_answers).",
    "low_quality": "The quality probe scores it below quality.threshold. Worst first.",
    "too_easy": "Predicted easier than schedule.min_difficulty. Easiest first.",
    "too_hard": "Predicted harder than schedule.max_difficulty. Hardest first.",
    "not_selected": "Passed over by coverage selection: prompts like it are kept.",
    "beyond_steps": "More than schedule.steps batches can hold; thinned evenly from easy to hard.",
    "remainder": "Too few to fill one more batch.",
}
"""Drop reasons in the order in which the stages apply them."""


@dataclass(frozen=True)
class _Decision:
    name: str
    used: bool
    words: str


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


@dataclass(frozen=True)
class _Card:
    number: int
    colour: str
    size: int
    facts: list[str]
    features: list[tuple[int, float]]
    nearest: list[str]


def render(header: Mapping[str, Any], curation: Curation, active: np.ndarray | None = None) -> str:
    """The page.

    Args:
        header: The manifest's header. Optional parts may be missing or None.
        curation: The findings behind it.
        active: int, active features of each prompt that the model has read; without it the header's quantiles do.
    """
    prompts = header["prompts"]
    return fill(
        "page.html.jinja",
        name=data_name(header),
        lead=lead(header, curation),
        figures=[("read", count(prompts["read"])), ("trained on", count(prompts["kept"])),
                 ("left out", count(prompts["dropped"])), ("batches", count(header["batches"])),
                 ("prompts a batch", count(header["batch_size"]))],
        warnings=warnings(header),
        decisions=decisions(header, curation),
        read=max(prompts["read"], 1),
        kept=prompts["kept"],
        drops=_drops(header, curation),
        batches=_batches(header, curation),
        difficulty=_difficulty(header, curation),
        quality=_quality(header, curation),
        clusters=_clusters(header, curation),
        health=_health(header, active),
        inputs=_inputs(header),
        settings=_settings(header),
        libraries=header.get("libraries") or {},
        format=header.get("format", "unknown"),
    )


def data_name(header: Mapping[str, Any]) -> str:
    """What the data set is called."""
    return shorten(str(_part(header, "inputs", "data").get("name") or "prompts"), 80)


def lead(header: Mapping[str, Any], curation: Curation) -> str:
    """The whole curation in two sentences."""
    prompts = header["prompts"]
    per_epoch = int((curation.schedule.epoch == 0).sum())
    again = header["batches"] > per_epoch
    sentence = (f"Of {count(prompts['read'], 'prompt')} read, {count(prompts['kept'])} are trained on, in "
                f"{count(header['batches'], 'batch', 'batches')} of {header['batch_size']}"
                + (f"; one pass over all of them takes {per_epoch}." if again else "."))
    mean = _batch_difficulty(curation)
    if mean is None:
        return sentence + " All of them count as equally hard, so the order follows the clusters alone."
    first_pass = mean[:per_epoch]
    quarter = max(1, per_epoch // 4)
    return sentence + (f" Mean predicted difficulty goes from {first_pass[:quarter].mean():.2f} in the first quarter "
                       f"{'of a pass ' if again else ''}to {first_pass[-quarter:].mean():.2f} in the last.")


def warnings(header: Mapping[str, Any]) -> list[str]:
    """What a person must not miss: closed gates, the SAE's health, notes of the stages."""
    found = [_sentence(f"{name} is not used: {report['why']}")
             for name, report in (("Difficulty", _part(header, "difficulty")), ("Quality", _part(header, "quality")))
             if report and not report.get("used") and report.get("method") != "none"]
    found += [_sentence(text) for text in _part(header, "health").get("warnings") or ()]
    notes = [*(header.get("notes") or ()), _part(header, "quality").get("note")]
    found += [_sentence(text) for text in dict.fromkeys(notes) if text]
    return found


def decisions(header: Mapping[str, Any], curation: Curation) -> list[_Decision]:
    """What each of the three signals decides here, and on what evidence."""
    sizes = _part(header, "clusters").get("sizes") or []
    mixture = _mixture(curation)
    diversity = (f"{count(len(sizes), 'cluster')}, the largest with {percent(max(sizes) / max(sum(sizes), 1))} of the "
                 f"prompts; a batch holds {mixture.mean():.1f} of them on average ({mixture.min()} to {mixture.max()})."
                 if len(sizes) > 1 else "One cluster: which prompts share a batch follows from difficulty alone."
                 if sizes else "No clusters.")
    made = [_Decision("Diversity", len(sizes) > 1, diversity)]
    for key in ("difficulty", "quality"):
        report = _part(header, key)
        used = bool(report.get("used"))
        words = _sentence(report.get("why") or "not part of this run")
        if key == "quality" and used:
            dropped = header["prompts"]["dropped_by_reason"].get("low_quality", 0)
            words += f" {count(dropped, 'prompt')} dropped."
        made.append(_Decision(key.capitalize(), used, words))
    return made


def cluster_count(header: Mapping[str, Any], curation: Curation) -> int:
    """Number of clusters, empty ones included: it decides each cluster's colour."""
    return max(len(_part(header, "clusters").get("sizes") or []), int(curation.cluster.max(initial=-1)) + 1)


def trained_per_cluster(curation: Curation, k: int) -> list[int]:
    """How many prompts of each cluster are trained on."""
    trained = curation.table["drop_reason"].is_null().to_numpy()
    return np.bincount(curation.cluster[trained & (curation.cluster >= 0)], minlength=k).tolist()


def _part(header: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A nested part of the header; empty where the run has none."""
    part: Any = header
    for name in path:
        part = part.get(name) or {}
    return part


def _sentence(text: str) -> str:
    text = shorten(str(text), 600)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!", "…")) else ".")


def _mixture(curation: Curation) -> np.ndarray:
    """int [batches]: clusters in each batch."""
    return np.array([len(np.unique(row)) for row in curation.cluster[curation.schedule.batches]])


def _batch_difficulty(curation: Curation) -> np.ndarray | None:
    """float [batches], mean predicted difficulty; None where difficulty tells no prompts apart."""
    drawn = curation.difficulty[curation.schedule.batches]
    if np.isnan(drawn).any() or np.ptp(drawn) == 0:
        return None
    return drawn.mean(axis=1)


def _drops(header: Mapping[str, Any], curation: Curation) -> list[_Drop]:
    prompts = header["prompts"]
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


def _batches(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    from saerl_core.report import figures

    schedule, settings = curation.schedule, _part(header, "settings", "schedule")
    mean = _batch_difficulty(curation)
    words = f"Batch k is step k of the training. A batch holds prompts of {_mixture(curation).mean():.1f} clusters."
    if "clusters_per_batch" in settings:
        drawn = {None: "without regard to clusters", "all": "from every cluster in turn"}.get(
            settings["clusters_per_batch"], f"from {settings['clusters_per_batch']} clusters that take turns")
        words = (f"Batch k is step k of the training. It is drawn {drawn}, and exchanges "
                 f"{percent(settings.get('tail_mix', 0), 0)} of its tail with the next batch, so that it holds "
                 f"{_mixture(curation).mean():.1f} clusters on average. ")
        whole = "The whole set" if settings["clusters_per_batch"] is None else "Each cluster"
        direction = "from hard to easy" if settings.get("order") == "hard_first" else "from easy to hard"
        fading = settings.get("fading", 0)
        words += ("The order within is random." if mean is None or fading == 1 else
                  f"{whole} goes {direction}" + (f", blended with {percent(fading, 0)} of chance." if fading else "."))
    sequence = figures.batch_sequence(schedule.batches, curation.cluster, curation.difficulty, schedule.epoch,
                                      figures.cluster_colours(cluster_count(header, curation)))
    roll = figures.cluster_roll(schedule.batches, curation.cluster, curation.difficulty)
    roll_words = "A row for each cluster, a column for each batch; empty where the cluster has no slot in the batch. "
    roll_words += ("The lighter, the harder the prompts that it gives; the hardest clusters are on top."
                   if mean is not None else "The lighter, the more slots it has there.")
    return {"words": words, "epochs": header.get("epochs", 1), "roll_words": roll_words,
            "sequence": _svg(sequence, "Clusters, predicted difficulty and mixture of each batch, in training order"),
            "roll": _svg(roll, "When each cluster gives prompts, and how hard they are")}


def _difficulty(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    from saerl_core.report import figures

    report, labels = _part(header, "difficulty"), _part(header, "labels")
    held_out = report.get("held_out") or []
    words = "How hard a prompt is for the policy, predicted from the features that fire in it. "
    if report.get("used"):
        words += "The order of training follows this prediction."
    else:
        words += _sentence(report.get("why") or "No prediction was made: every prompt counts as equally hard")
    drawings, caption = [], ""
    if held_out:
        drawings.append(_svg(figures.held_out_difficulty(held_out),
                             "Predicted against measured difficulty of held-out prompts"))
        caption = ("Each labelled prompt is predicted by a proxy that has not seen it. On the dashed line, prediction "
                   "and measurement agree; for the order of training it is enough that the orange line rises.")
        if len(held_out) > figures.DRAWN_DOTS:
            caption += f" {count(figures.DRAWN_DOTS)} of {count(len(held_out))} dots are drawn; the means are of all."
    trained = curation.table["drop_reason"].is_null().to_numpy()
    known = ~np.isnan(curation.difficulty)
    if report.get("used") and (trained & known).any():
        drawings.append(_svg(figures.predicted_difficulty(curation.difficulty[trained & known],
                                                          curation.difficulty[~trained & known]),
                             "Histogram of predicted difficulty, trained on and left out"))
        level = curation.table["level"].cast(float).fill_null(float("nan")).to_numpy()
        both = known & ~np.isnan(level)
        if 2 <= len(np.unique(level[both])) <= _LEVELS:
            drawings.append(_svg(figures.difficulty_by_level(level[both], curation.difficulty[both]),
                                 "Predicted difficulty at each level of the data set"))
            caption += " The data set's levels had no part in the fit."
    facts = [("labelled prompts", count(report.get("labels") or labels.get("count") or 0))]
    if labels.get("source"):
        facts.append(("labels from", str(labels["source"])))
    if labels.get("doubtful"):
        facts.append(("doubtful labels, not used", count(labels["doubtful"])))
    if labels.get("samples"):
        facts.append(("answers per prompt", count(labels["samples"])))
    rate = labels.get("mean_pass_rate", report.get("mean_pass_rate"))
    facts.append(("mean pass rate", "–" if rate is None else percent(rate)))
    facts.append(("held-out Spearman", _interval(report, "spearman")))
    if report.get("method"):
        facts.append(("method", str(report["method"]).replace("_", " ")))
    facts.append(("features with a weight", count(report.get("features") or 0)))
    return {"words": words, "drawings": drawings, "caption": caption, "facts": facts}


def _quality(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    from saerl_core.report import figures

    report = _part(header, "quality")
    threshold = _part(header, "settings", "quality").get("threshold") if report.get("used") else None
    held_out = report.get("held_out") or []
    words = "Whether a prompt is intact, judged by a probe that learned to tell prompts from damaged copies of them. "
    if report.get("used"):
        words += f"Prompts that score below {threshold} are dropped." if threshold is not None else "It is in use."
    else:
        words += _sentence(report.get("why") or "There is no such probe in this run: nothing is filtered")
    score = np.array([value for value, _ in held_out], dtype=np.float64)
    kind = np.array([name for _, name in held_out], dtype=object)
    intact = kind == "intact"
    drawings, kinds = [], []
    if held_out:
        drawings.append(_svg(figures.held_out_quality(score[intact], score[~intact], threshold),
                             "Histogram of quality scores of held-out prompts, intact and damaged"))

        def row(name: str, rows: np.ndarray, auc: float | None) -> dict[str, Any]:
            below = percent(float((score[rows] < threshold).mean())) if threshold is not None and rows.any() else "–"
            return {"name": name.replace("_", " "), "count": int(rows.sum()), "auc": auc, "caught": below}

        by_kind = report.get("auc_by_kind") or {}
        kinds = [row(name, kind == name, by_kind[name]) for name in sorted(by_kind, key=lambda name: -by_kind[name])]
        kinds += [row("all damaged copies", ~intact, report.get("auc")), row("intact prompts", intact, None)]
    scores = curation.quality[~np.isnan(curation.quality)]
    if report.get("used") and len(scores):
        drawings.append(_svg(figures.quality_of_prompts(scores, threshold), "Histogram of the prompts' quality scores"))
    facts = []
    if report.get("auc") is not None:
        facts = [("held-out AUC", _interval(report, "auc", 3)), ("training AUC", figure(report.get("auc_train"), 3)),
                 ("pairs", count(report.get("pairs") or 0)), ("method", str(report.get("method")))]
    caption = ""
    if threshold is not None:
        caption = ("A score below the threshold drops a prompt: of damaged copies more is better, of intact prompts "
                   "less. ")
    caption += "The probe cannot see a wrong answer key: that is not in the prompt."
    return {"words": words, "drawings": drawings, "kinds": kinds, "facts": facts, "caption": caption,
            "column": "" if threshold is None else f"below {threshold}"}


def _clusters(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    from saerl_core.report import figures

    part = _part(header, "clusters")
    sizes, cards = list(part.get("sizes") or []), list(part.get("cards") or [])
    trained = trained_per_cluster(curation, len(sizes))
    colours = figures.cluster_colours(cluster_count(header, curation))
    words = (f"Prompts in which the same features fire stand together. {count(len(sizes), 'cluster')}, from "
             f"{count(min(sizes), 'prompt')} to {count(max(sizes), 'prompt')}; k-means took "
             f"{count(part.get('iterations') or 0, 'iteration')}. Under each name: the features that fire here more "
             "often than over all prompts (×lift), and the prompts nearest to the centre." if sizes else "No clusters.")
    shown = sorted(cards, key=lambda card: (-card["size"], card["cluster"]))[:_CARDS]
    return {"words": words, "hidden": len(cards) - len(shown),
            "cards": [_card(card, curation, colours[card["cluster"]], trained[card["cluster"]]) for card in shown],
            "sizes": _svg(figures.cluster_sizes(sizes, trained, colours), "Cluster sizes")
            if sizes else ""}


def _card(card: Mapping[str, Any], curation: Curation, colour: str, trained: int) -> _Card:
    members = np.flatnonzero(curation.cluster == card["cluster"])
    parts = [f"{count(trained)} trained on"]
    hard = curation.difficulty[members]
    if len(hard) and not np.isnan(hard).all() and np.nanmax(curation.difficulty) > np.nanmin(curation.difficulty):
        parts.append(f"difficulty {np.nanmean(hard):.2f}")
    subjects = curation.table["subject"][members].drop_nulls().value_counts(sort=True)
    if subjects.height:
        subjects = subjects.sort(["count", "subject"], descending=[True, False])
        parts.append(f"{percent(subjects['count'][0] / len(members), 0)} {shorten(subjects['subject'][0], 32)}")
    texts = [shorten(str(curation.table["text"][int(row)]), 150) for row in card.get("nearest") or ()]
    return _Card(int(card["cluster"]), colour, int(card["size"]), parts,
                 [(int(feature), float(lift)) for feature, lift in card.get("features") or ()], texts[:3])


def _health(header: Mapping[str, Any], active: np.ndarray | None) -> dict[str, Any]:
    from saerl_core.report import figures

    health, inputs = _part(header, "health"), _part(header, "inputs")
    if not health:
        return {"words": "This manifest holds no health figures.", "drawing": None, "facts": []}
    model, sae = inputs.get("model") or {}, inputs.get("sae") or {}
    layer = f" after layer {model['layer']} of {model['layers']}" if {"layer", "layers"} <= set(model) else ""
    width = f" of {count(sae['d_sae'], 'feature')}" if "d_sae" in sae else ""
    words = (f"The reader's residual stream{layer}, seen through an SAE{width}. A healthy SAE fires different features "
             "on different prompts: few that fire everywhere, many that fire somewhere.")
    quantiles = health.get("active_quantiles")
    label = "Active features per prompt"
    picture = (_svg(figures.active_features(active), label) if active is not None and len(active) else
               _svg(figures.active_quantiles(quantiles), label) if quantiles else None)
    facts = [("prompts read by the model", count(health["prompts"])), ("tokens", count(health["tokens"])),
             ("features that fire at all", percent(health["firing_share"])),
             ("of these, on nearly every prompt", percent(health["ubiquitous_share"])),
             *([("variance that it misses, median prompt", percent(health["fvu_quantiles"][2]))]
               if health.get("fvu_quantiles") else []),
             ("tokens masked (BOS, sinks)", percent(health["masked_share"])),
             ("prompts read in part", count(health["cut_prompts"]))]
    if quantiles:
        facts.append(("median active features", count(quantiles[2])))
    return {"words": words, "drawing": picture, "facts": facts}


def _inputs(header: Mapping[str, Any]) -> list[dict[str, str]]:
    inputs = _part(header, "inputs")
    roles = {"data": "prompts", "heldout": "held-out set", "model": "reader", "sae": "SAE", "policy": "policy"}
    made = []
    for key in [*(key for key in roles if inputs.get(key)), *sorted(set(inputs) - set(roles))]:
        source = inputs[key] if isinstance(inputs[key], dict) else {"sha256": inputs[key]}
        words = ", ".join(f"{name} {value}" for name, value in source.items() if name != "sha256" and value is not None)
        made.append({"role": roles.get(key, key), "sha256": str(source.get("sha256") or "–"),
                     "words": shorten(words, 160)})
    return made


def _settings(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    loose, sections = [], []
    for name, value in _part(header, "settings").items():
        if isinstance(value, Mapping):
            sections.append({"name": name, "entries": _flat(value)})
        else:
            loose.append((name, _setting(value)))
    return ([{"name": "run", "entries": loose}] if loose else []) + sections


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    entries = []
    for key, value in tree.items():
        entries += (_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping)
                    else [(f"{prefix}{key}", _setting(value))])
    return entries


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return shorten(", ".join(map(str, value)), 300)
    return "–" if value is None or value == "" else shorten(str(value), 300)


def _interval(report: Mapping[str, Any], name: str, decimals: int = 2) -> str:
    if report.get(name) is None:
        return "–"
    low, high = (figure(report.get(f"{name}_{end}"), decimals) for end in ("low", "high"))
    return f"{report[name]:.{decimals}f} ({low} to {high})"


def _svg(fig: Any, label: str) -> Markup:
    from saerl_core.report import figures

    return drawing(figures.to_svg(fig, label))
