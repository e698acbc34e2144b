"""Stage `manifest`: everything found → filter, schedule, report, and the manifest folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from saerl_core import controls, coverage, hygiene, overlap, schedule
from saerl_core import manifest as core
from saerl_core.artifact import ArtifactRef
from saerl_core.clusters import Codebook
from saerl_core.config import RunConfig, ScheduleConfig
from saerl_core.features import FeatureRows
from saerl_core.hashing import hash_value
from saerl_core.manifest import Curation
from saerl_core.quality import low_quality
from saerl_core.schedule import Schedule
from tasks import cluster
from tasks.caching import stage
from tasks.extract import load_rows
from tasks.inputs import Inputs
from tasks.label import load_labels, target
from tasks.progress import Progress
from tasks.quality import load_suspicion
from tasks.read import load_findings, load_table
from tasks.scores import load_scores

SUMMARY = "summary.md"


@stage("manifest", core.VERSION * 10_000 + coverage.VERSION * 100 + schedule.VERSION,
       of=("table", "features", "clusters", "labels", "difficulty", "quality", "suspects", "settings_hash"))
def manifest(root: Path, inputs: Inputs, config: RunConfig, table: ArtifactRef, features: ArtifactRef,
             clusters: ArtifactRef, labels: ArtifactRef | None, difficulty: ArtifactRef, quality: ArtifactRef,
             suspects: ArtifactRef | None, settings_hash: str) -> ArtifactRef:
    """Select, order and write the manifest. `settings_hash` is `curation_hash(config, inputs)`."""
    from saerl_core.report import markdown, page

    all_rows = load_table(table)
    usable = all_rows["drop_reason"].is_null().arg_true().to_numpy()
    hard, difficulty_report = load_scores(difficulty)
    good, quality_report = load_scores(quality)
    bad, note = np.zeros(len(usable), bool), ""
    if quality_report["used"]:
        bad, note = low_quality(good, quality_report["threshold"], config.quality)
    findings = load_findings(table)
    notes = [*controls.notes(config), *hygiene.summary(findings), *filter(None, [note])]
    suspected, suspicion_report = load_suspicion(suspects) if suspects is not None else ([], None)
    pass_rate, doubtful = _label_columns(labels, len(usable))
    refused = np.flatnonzero(doubtful & config.labels.drop_doubtful)
    grouped, codebook, rows = cluster.load_labels(clusters), cluster.load_codebook(clusters), load_rows(features)
    plan_config = config.schedule
    if not difficulty_report["used"]:
        plan_config = plan_config.model_copy(update={"min_difficulty": 0.0, "max_difficulty": 1.0})
        if plan_config != config.schedule:
            notes.append("difficulty is not used, so schedule.min_difficulty and max_difficulty drop nothing")
    judged = {"suspect_answer": np.array(suspected, dtype=np.int64), "doubtful_label": refused,
              "low_quality": np.flatnonzero(bad)}
    good_rows = np.setdiff1d(np.arange(len(usable)), np.concatenate(list(judged.values())))
    candidates, passed_over = _select(good_rows, config, plan_config, rows, grouped, hard, codebook)
    plan = schedule.make_schedule(grouped[candidates], hard[candidates], plan_config)
    if (asked := config.schedule.steps) is not None and len(plan.batches) < asked:
        notes.append(f"schedule.steps = {asked}, but what is left gives {len(plan.batches)} batches in "
                     f"{config.schedule.epochs} epochs: schedule.epochs repeats them")
    plan = replace(plan, batches=candidates[plan.batches],
                   dropped={reason: candidates[dropped] for reason, dropped in plan.dropped.items()})

    reasons = all_rows["drop_reason"].to_numpy().astype(object)
    for reason, dropped in {**judged, "not_selected": passed_over, **plan.dropped}.items():
        reasons[usable[dropped]] = reason
    curation = Curation(
        table=all_rows.with_columns(drop_reason=pl.Series(reasons.tolist(), dtype=pl.String)),
        cluster=_spread(grouped, usable, len(reasons), -1),
        difficulty=_spread(hard, usable, len(reasons), np.nan),
        quality=_spread(good, usable, len(reasons), np.nan),
        pass_rate=_spread(pass_rate, usable, len(reasons), np.nan),
        schedule=schedule.Schedule(usable[plan.batches], plan.epoch, {}),
        doubtful=_spread(doubtful, usable, len(reasons), False),
    )
    cards = cluster.load_about(clusters)
    for card in cards["cards"]:
        card["nearest"] = [int(usable[row]) for row in card["nearest"]]
    provenance = {
        "inputs": provenance_of(config, inputs),
        "settings": core.settings(config),
        "hygiene": findings,
        "health": json.loads((features.path / "health.json").read_text(encoding="utf-8")),
        "clusters": {"sizes": [card["size"] for card in cards["cards"]], **cards},
        "labels": _label_figures(config, pass_rate, doubtful),
        "difficulty": difficulty_report,
        "quality": quality_report,
        "suspicion": suspicion_report,
        "batches_overlap": _overlap(rows, codebook, plan, config.schedule.seed),
        "seed": config.schedule.seed,
        "notes": notes,
    }
    return core.write_manifest(root / "manifests", curation, provenance, lambda header: {
        "report.html": page.render(header, curation),
        SUMMARY: markdown.summary(header, curation),
    }, (clusters.path / core.CODEBOOK).read_bytes())


def _select(candidates: np.ndarray, config: RunConfig, plan: ScheduleConfig, rows: FeatureRows, grouped: np.ndarray,
            hard: np.ndarray, codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    """(candidates of the schedule, those that coverage passed over); too easy and too hard ones cost no budget."""
    if config.coverage.budget is None:
        return candidates, candidates[:0]
    outside = [candidates[:0], *schedule.outside_band(hard[candidates], plan).values()]
    inside = np.delete(candidates, np.concatenate(outside))
    chosen = coverage.select(rows, grouped, codebook, inside, config.coverage, Progress("cover", "prompts"))
    passed_over = np.setdiff1d(inside, chosen, assume_unique=True)
    return np.setdiff1d(candidates, passed_over, assume_unique=True), passed_over


def _overlap(rows: FeatureRows, codebook: Codebook, plan: Schedule, seed: int) -> dict[str, list[float]]:
    """Mean pairwise cosine in each batch, for our order and for the same prompts shuffled.

    Of the first epoch: the others hold the same prompts, and would pass for more evidence than there is.
    """
    first = plan.epoch == 0
    plan = replace(plan, batches=plan.batches[first], epoch=plan.epoch[first])
    orders = {"ours": plan.batches, "shuffled": overlap.shuffled(plan, seed)}
    return {name: np.round(overlap.batch_overlap(rows, codebook.idf, order), 4).tolist()
            for name, order in orders.items()}


def curation_hash(config: RunConfig, inputs: Inputs) -> str:
    """Hash of everything in a manifest's header that its inputs' references do not already hold."""
    return hash_value([core.settings(config), provenance_of(config, inputs), core.library_versions()])


def provenance_of(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """What was read, by content: hashes and shapes, no places."""
    hashes = list(inputs.evaluation_hashes.values())  # the held-out set's first
    return {
        "data": {"name": config.data.name, "sha256": inputs.data_hash},
        "heldout": {"sha256": hashes.pop(0)} if config.data.heldout else None,
        "decontaminate": [{"sha256": sha256} for sha256 in hashes],
        "model": {"sha256": inputs.model_hash, "layers": inputs.layers, "d_model": inputs.d_model,
                  "layer": inputs.layer},
        "sae": {"sha256": inputs.encoder_hash, "architecture": inputs.encoder.architecture,
                "d_sae": inputs.encoder.d_sae},
        "policy": {"sha256": inputs.policy_hash, "verifier": inputs.verifier},
        "rewards": {"sha256": inputs.rewards_hash} if inputs.rewards_hash else None,
    }


def _label_columns(labels: ArtifactRef | None, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(pass rate, NaN where there is none; whether it is doubtful) of each usable prompt."""
    pass_rate, doubtful = np.full(length, np.nan), np.zeros(length, dtype=bool)
    if labels is not None:
        found = load_labels(labels)
        pass_rate[found["row"].to_numpy()] = found["pass_rate"].to_numpy()
        doubtful[found["row"].to_numpy()] = found["doubtful"].to_numpy()
    return pass_rate, doubtful


def _label_figures(config: RunConfig, pass_rate: np.ndarray, doubtful: np.ndarray) -> dict[str, Any]:
    """Of the labels that are believed; the doubtful ones are counted only."""
    source, known = config.labels.source, pass_rate[~np.isnan(pass_rate) & ~doubtful]
    return {
        "source": source,
        "target": target(config.labels),
        "model": config.labels.server.model if source == "server" and config.labels.server else None,
        "count": len(known),
        "doubtful": int(doubtful.sum()),
        "samples": config.labels.samples if source in ("rollouts", "server") else None,
        "mean_pass_rate": round(float(known.mean()), 6) if len(known) else None,
    }


def _spread(values: np.ndarray, rows: np.ndarray, length: int, missing: float) -> np.ndarray:
    """Values of some rows, placed among all rows."""
    spread = np.full(length, missing, dtype=np.result_type(values.dtype, type(missing)))
    spread[rows] = values
    return spread

