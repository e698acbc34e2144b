"""A made-up curation that looks like a real one: graded word problems, clusters by topic, noisy probes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from saerl_core.config import ScheduleConfig
from saerl_core.manifest import Curation
from saerl_core.prompts import SCHEMA
from saerl_core.schedule import Schedule, make_schedule

HOSTILE = [
    "<script>alert(1)</script> What is 2 + 2?",
    "</title></style><img src=x onerror=alert(2)> & \"quotes\" 'single'",
    "{{ 7 * 7 }} {% include '/etc/passwd' %} ${x} `code` | cell | <!-- -->",
    "\u202egnp.exe\u202c right to left, a NUL \x00 and a bell \x07, " + "x" * 500,
]
_NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emeka", "Farah", "Goran", "Hana")
_THINGS = ("apples", "marbles", "tickets", "stamps", "coins", "bricks", "pages", "tiles", "litres of milk", "postcards")
_SUBJECTS = ("Algebra", "Counting", "Geometry", "Number Theory", "Prealgebra", "Rates", "Money", "Time")
_KINDS = ("garbled_letters", "garbled_words", "numbers_removed", "question_removed", "truncated")


def make(n: int = 2600, k: int = 32, batch_size: int = 32, steps: int | None = 40, seed: int = 0, epochs: int = 1,
         hostile: bool = False) -> tuple[dict[str, Any], Curation]:
    """(header, curation)."""
    rng = np.random.default_rng(seed)
    cluster = rng.choice(k, n, p=rng.dirichlet(np.full(k, 4.0))).astype(np.int32)
    level = np.clip(np.round(rng.normal(2 + 3 * cluster / max(k - 1, 1), 1.0)), 1, 6)
    true = 1 / (1 + np.exp(-(level - 3.5) - rng.normal(0, 0.6, n)))
    difficulty = np.clip(0.15 + 0.7 * true + rng.normal(0, 0.11, n), 0, 1)
    quality = np.clip(1 - rng.gamma(1.2, 0.09, n), 0.02, 1)
    bad = rng.random(n) < 0.05
    quality[bad] = rng.uniform(0.02, 0.5, bad.sum())
    texts = [_story(rng, int(cluster[row]), int(level[row])) for row in range(n)]
    if hostile:
        for row in range(n):
            texts[row] = HOSTILE[row % len(HOSTILE)] + f" ({row})"
    reasons: list[str | None] = [None] * n
    for reason, share in (("duplicate", 0.04), ("conflicting_answers", 0.006), ("contaminated", 0.012),
                          ("too_long", 0.003)):
        for row in rng.choice(n, round(n * share), replace=False):
            reasons[row] = reasons[row] or reason
    unread = np.array([reason is not None for reason in reasons])
    cluster[unread], difficulty[unread], quality[unread] = -1, np.nan, np.nan
    for row in np.flatnonzero(quality < 0.5):
        reasons[row] = "low_quality"
    candidates = np.flatnonzero([reason is None for reason in reasons])
    config = ScheduleConfig(batch_size=batch_size, clusters_per_batch=min(4, batch_size), max_difficulty=0.85,
                            steps=steps, epochs=epochs)
    plan = make_schedule(cluster[candidates], difficulty[candidates], config)
    for reason, rows in plan.dropped.items():
        for row in candidates[rows]:
            reasons[row] = reason
    labelled = rng.choice(np.flatnonzero(~unread), min(300, int((~unread).sum())), replace=False)
    pass_rate = np.full(n, np.nan)
    pass_rate[labelled] = rng.binomial(8, 1 - true[labelled]) / 8
    table = pl.DataFrame({
        "key": [f"{row:032x}" for row in range(n)], "id": [f"row-{row}" for row in range(n)],
        "messages": [[{"role": "user", "content": text}] for text in texts], "text": texts,
        "answer": [str(int(number)) for number in rng.integers(1, 400, n)], "data_source": ["toy"] * n,
        "subject": [_SUBJECTS[number % len(_SUBJECTS)] if rng.random() < 0.8 else _SUBJECTS[int(rng.integers(8))]
                    for number in cluster],
        "level": level, "pass_rate": pass_rate, "quality": [None] * n, "solution": [None] * n, "drop_reason": reasons,
    }, schema=SCHEMA)
    curation = Curation(table, cluster, difficulty, quality, pass_rate,
                        Schedule(candidates[plan.batches], plan.epoch, {}))
    active = rng.normal(150 + 6 * level[~unread], 22).round().astype(np.int64).clip(12)
    return _header(rng, curation, labelled, active, config, k), curation


def without_gates(header: dict[str, Any], curation: Curation) -> tuple[dict[str, Any], Curation]:
    """The same run, had neither probe beaten chance."""
    shut = {
        **header,
        "difficulty": {**header["difficulty"], "used": False, "spearman": 0.03, "spearman_low": -0.09,
                       "spearman_high": 0.15, "why": "held-out Spearman 0.03 (95% interval -0.09 to 0.15) does not "
                       "beat chance: every prompt counts as equally hard"},
        "quality": {**header["quality"], "used": False, "why": "held-out AUC 0.520 (95% interval 0.46 to 0.58), "
                    "training AUC 0.97: not above quality.min_auc = 0.6, so nothing is filtered"},
        "health": {**header["health"], "warnings": ["only 1.2% of the SAE's features ever fire: it looks collapsed, or "
                                                    "was trained on another layer"]},
    }
    return shut, replace(curation, difficulty=np.where(np.isnan(curation.difficulty), np.nan, 0.5))


def without_extras(header: dict[str, Any], curation: Curation) -> tuple[dict[str, Any], Curation]:
    """A run without labels, probes, subjects, levels and most of the provenance."""
    nothing = np.full(curation.table.height, np.nan)
    bare = {key: header[key] for key in ("format", "prompts", "batch_size", "batches", "epochs")}
    difficulty = {"method": "none", "used": False, "why": "no labels: every prompt counts as equally hard", "labels": 0,
                  "mean_pass_rate": None, "spearman": None, "spearman_low": None, "spearman_high": None, "features": 0,
                  "held_out": []}
    table = curation.table.with_columns(subject=pl.lit(None, pl.String), level=pl.lit(None, pl.Float64),
                                        pass_rate=pl.lit(None, pl.Float64))
    return {**bare, "difficulty": difficulty, "labels": None}, replace(
        curation, table=table, difficulty=nothing, quality=nothing, pass_rate=nothing)


def training(steps: int = 40, seed: int = 0) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Metrics and result of a GRPO run that went well."""
    rng = np.random.default_rng(seed)
    step = np.arange(1, steps + 1)
    rise = 1 - np.exp(-step / 18)
    metrics = pl.DataFrame({
        "step": step,
        "reward_mean": 0.24 + 0.22 * rise + rng.normal(0, 0.03, steps),
        "response_length_mean": 22 + 4 * rise + rng.normal(0, 0.4, steps),
        "pg_loss": rng.normal(0, 0.01, steps),
        "ppo_kl": np.abs(rng.normal(0, 4e-4, steps)),
        "clipfrac": np.abs(rng.normal(0.004, 0.002, steps)),
        "entropy": 0.55 - 0.2 * rise + rng.normal(0, 0.01, steps),
        "grad_norm": 0.8 + np.abs(rng.normal(0, 0.2, steps)),
        "lr": np.minimum(step / 5, 1) * 1e-6,
        "heldout_accuracy": [0.24 + 0.14 * rise[i] if (i + 1) % 10 == 0 else None for i in range(steps)],
        "seconds": 2.4 + np.abs(rng.normal(0, 0.2, steps)),
    })
    result = {
        "manifest": "0f3a9c1d2b4e5f60", "steps": steps,
        "accuracy_before": {"sampled": 0.242, "greedy": 0.221}, "accuracy_after": {"sampled": 0.381, "greedy": 0.409},
        "gain": {"sampled": {"difference": 0.139, "low": 0.121, "high": 0.157},
                 "greedy": {"difference": 0.188, "low": 0.155, "high": 0.221}},
    }
    return metrics, result


def _story(rng: np.random.Generator, topic: int, level: int) -> str:
    name, other = rng.choice(_NAMES, 2, replace=False)
    thing = _THINGS[topic % len(_THINGS)]
    verbs = ("buys", "finds", "is given", "packs") if topic % 2 else ("sells", "loses", "gives away", "breaks")
    steps = [f"Then {rng.choice([name, other])} {rng.choice(verbs)} {rng.integers(2, 30)} {thing}."
             for _ in range(level)]
    return f"{name} has {rng.integers(3, 90)} {thing}. {' '.join(steps)} How many {thing} are there in the end?"


def _hygiene(curation: Curation) -> dict[str, Any]:
    """One pair of each kind, the texts those of the first two rows."""
    (text, other), (answer, other_answer) = curation.table["text"][:2], curation.table["answer"][:2]
    pair = {"id": "row-0", "text": text, "answer": answer, "other_id": "row-1", "other_text": other,
            "other_answer": other_answer, "overlap": 0.75}
    reasons = Counter(curation.table["drop_reason"].drop_nulls())
    return {"rows": curation.table.height, "duplicates": {"total": reasons["duplicate"], "pairs": []},
            "conflicting_answers": {"total": 1, "pairs": [pair]},
            "near_duplicates": {"total": 300, "pairs": [pair] * 200},
            "near_conflicts": {"total": 1, "pairs": [pair]}, "sae_near_duplicates": None,
            "conflicting_pass_rates": {"total": 1, "prompts": [
                {"id": "row-0", "text": text, "pass_rates": [0.25, 0.75], "used": 0.5}]},
            "contamination": [{"set": "exam", "rows": 500, "exact": 4, "near": reasons["contaminated"] - 4,
                               "pairs": [pair]}]}


def _header(rng: np.random.Generator, curation: Curation, labelled: np.ndarray, active: np.ndarray,
            config: ScheduleConfig, k: int) -> dict[str, Any]:
    reasons = Counter(curation.table["drop_reason"].drop_nulls())
    sizes = np.bincount(curation.cluster[curation.cluster >= 0], minlength=k)
    intact = np.clip(1 - rng.gamma(1.2, 0.12, 120), 0, 1)
    kinds = [_KINDS[i % len(_KINDS)] for i in range(120)]
    weakness = {"garbled_letters": 0.1, "garbled_words": 0.15, "numbers_removed": 0.25, "question_removed": 0.45,
                "truncated": 0.5}
    damaged = [float(np.clip(rng.normal(weakness[kind], 0.18), 0, 1)) for kind in kinds]
    rate = curation.pass_rate[labelled]
    counts, edges = np.histogram(active, 20)
    return {
        "format": 1,
        "prompts": {"read": curation.table.height, "kept": curation.table["drop_reason"].null_count(),
                    "dropped": sum(reasons.values()), "dropped_by_reason": dict(sorted(reasons.items()))},
        "batch_size": config.batch_size, "batches": len(curation.schedule.batches),
        "epochs": int(curation.schedule.epoch[-1]) + 1,
        "libraries": {"saerl": "0.1.0", "torch": "2.13.0", "polars": "2.1.0", "python": "3.11.8"},
        "inputs": {"data": {"sha256": "1a" * 32, "name": "toy-train"}, "heldout": {"sha256": "2b" * 32},
                   "model": {"sha256": "3c" * 32, "layers": 4, "d_model": 128, "layer": 2},
                   "sae": {"sha256": "4d" * 32, "architecture": "topk", "d_in": 128, "d_sae": 2048},
                   "policy": {"sha256": "5e" * 32}},
        "settings": {"name": "toy", "schedule": config.model_dump(),
                     "difficulty": {"prior_strength": 8.0}, "quality": {"threshold": 0.5, "corruptions": _KINDS},
                     "data": {"columns": {"prompt": "problem", "id": None}, "answer_pattern": "#### (.+)$"}},
        "hygiene": _hygiene(curation),
        "batches_overlap": {"ours": (0.24 + rng.normal(0, 0.02, len(curation.schedule.batches))).tolist(),
                            "shuffled": (0.21 + rng.normal(0, 0.02, len(curation.schedule.batches))).tolist()},
        "suspicion": None,
        "health": {"prompts": len(active), "tokens": 151_020, "masked_share": 0.0213, "cut_prompts": 0,
                   "firing_share": 0.684, "active_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
                   "fvu_prompts": len(active), "fvu_quantiles": [0.01, 0.04, 0.06, 0.08, 0.3], "fvu_limit": 0.2,
                   "far_share": 0.012, "active_quantiles": np.quantile(active, [0, 0.25, 0.5, 0.75, 1]).tolist(),
                   "ubiquitous_share": 0.021, "warnings": []},
        "clusters": {"sizes": sizes.tolist(), "iterations": 14, "choice": None, "drift": None,
                     "kept": False, "cards": [
            {"cluster": number, "size": int(sizes[number]),
             "features": [(int(feature), round(float(lift), 3)) for feature, lift in
                          zip(rng.integers(0, 2048, 6), sorted(rng.uniform(1.5, 14, 6), reverse=True), strict=True)],
             "nearest": [int(row) for row in np.flatnonzero(curation.cluster == number)[:4]]} for number in range(k)]},
        "difficulty": {"method": "elastic_net", "used": True,
                       "why": "held-out Spearman 0.71 (95% interval 0.65 to 0.76)",
                       "labels": len(labelled), "mean_pass_rate": float(rate.mean()), "spearman": 0.71,
                       "spearman_low": 0.65, "spearman_high": 0.76, "features": 214, "observed": 0,
                       "held_out": [(float(curation.difficulty[row]), float(1 - curation.pass_rate[row]))
                                    for row in labelled]},
        "quality": {"method": "logistic", "used": True,
                    "why": "held-out AUC 0.953 (95% interval 0.927 to 0.974), training AUC 0.998",
                    "labels": "corruptions", "good": 400, "bad": 400, "auc": 0.953, "auc_low": 0.927,
                    "auc_high": 0.974, "auc_train": 0.998, "threshold": 0.5,
                    "auc_by_kind": {"garbled_letters": 0.998, "garbled_words": 0.987, "numbers_removed": 0.96,
                                    "question_removed": 0.92, "truncated": 0.89},
                    "held_out": [*((float(score), "intact") for score in intact),
                                 *zip(damaged, kinds, strict=True)]},
        "labels": {"source": "rollouts", "count": len(labelled), "samples": 8, "mean_pass_rate": float(rate.mean())},
        "notes": [],
    }
