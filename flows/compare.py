"""Flow `compare`: arms x seeds, each curated and trained as `saerl run` would, then set side by side.

Every (arm, seed) is made of cached stages: what is interrupted goes on, and a new arm or seed costs only itself. Seeds
come one after the other with all arms of each, so whatever is there at any time is a fair comparison of fewer seeds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.curate import TWO_WORKERS, Curated, curate
from flows.publish import publish, tag_run
from flows.stages import record, run_stage
from saerl_core import models, sources
from saerl_core.artifact import ArtifactRef, write_file
from saerl_core.compare import gather
from saerl_core.compare.arms import arm_config, random_filter_of, seeds_of
from saerl_core.compare.cost import model_size
from saerl_core.compare.curves import Trained
from saerl_core.compare.gather import Seeded
from saerl_core.compare.result import Comparison
from saerl_core.compare.rounds import round_config
from saerl_core.config import RunConfig
from saerl_core.locks import in_use
from saerl_core.manifest import read_manifest
from tasks.heldout import ANSWERED, ROWS, heldout, validation
from tasks.train import plan_job
from tasks.train import train as train_stage

FOLDER = "comparisons"


@flow(name="compare", flow_run_name="compare · {config.name}", persist_result=False, task_runner=TWO_WORKERS)
def compare(config: RunConfig) -> dict[str, Any]:
    """Train every arm with every seed; accuracy by step, with intervals."""
    with in_use(config.root):
        return _compare(config)


def _compare(config: RunConfig) -> dict[str, Any]:
    tag_run(f"data:{config.data.name}")
    folder = config.root / FOLDER / config.name
    found: dict[str, list[Seeded]] = {}
    done, comparison = 0, None
    plan = list(trainings(config))
    for place, (name, seed) in enumerate(plan, start=1):
        started = time.monotonic()
        one, cached = _train(config, name, seed)
        found.setdefault(name, []).append(one)
        done += not cached
        record(f"arm {name} · seed {seed}", cached=cached, seconds=time.monotonic() - started,
               note=f"{one.curve['sampled'][0]:.1%} → {one.final:.1%} ({place}/{len(plan)})")
        if config.compare.baseline in found and (place == len(plan) or plan[place][1] != seed):
            comparison = gather.compare(config, found)
            _write(folder, comparison)
    assert comparison is not None, "the baseline is one of the arms"
    from saerl_core.report.comparison import comparison_markdown

    create_markdown_artifact(key="comparison", markdown=comparison_markdown(comparison),
                             description=f"{len(found)} arms, {len(plan)} trainings")
    return {**comparison.model_dump(mode="json"), "trainings": len(plan), "trained_now": done,
            "report": str(folder / "report.html"), "json": str(folder / "comparison.json")}


def trainings(config: RunConfig) -> Iterator[tuple[str, int]]:
    """(arm, seed), the baseline first within each seed."""
    comparison = config.compare
    names = sorted(comparison.arms, key=lambda name: name != comparison.baseline)
    seeds = dict.fromkeys(seed for name in names for seed in seeds_of(comparison, name))
    return ((name, seed) for seed in seeds for name in names if seed in seeds_of(comparison, name))


@dataclass(frozen=True)
class _Round:
    trained: Trained
    checkpoint: Path
    cached: bool


def _train(config: RunConfig, name: str, seed: int) -> tuple[Seeded, bool]:
    """One arm with one seed: as many rounds as it has, then what they left; whether all of it was there already."""
    whole = arm_config(config, name, seed, _drop_share(config, name, seed))
    rows = _heldout(whole)
    rounds: list[_Round] = []
    of = config.compare.arms[name].rounds
    for number in range(of):
        part = round_config(whole, number, of, rounds[-1].checkpoint if rounds else None)
        rounds.append(_train_round(part, rows, sum(one.trained.steps for one in rounds)))
    base = Path(config.base)
    reader, policy = (model_size(models.fetch(model, base)) for model in (whole.features.model, whole.policy.model))
    found = gather.read_back(whole, seed, [one.trained for one in rounds], pl.read_parquet(rows.path / ROWS), reader,
                             policy)
    return found, all(one.cached for one in rounds)


def _train_round(config: RunConfig, rows: ArtifactRef, first_step: int) -> _Round:
    curated: Curated = curate(config)
    policy_hash = models.model_hash(models.fetch(config.policy.model, Path(config.base)))
    answered, entry = run_stage(config, validation, config.root, rows, config.train)
    job = plan_job(config, curated.manifest.path, answered.path / ANSWERED, policy_hash)
    trained, last = run_stage(config, train_stage, job, job.identity,
                              size=f"{config.name}, {job.steps} steps", describe=lambda found: f"{found.steps} steps")
    publish(config, trained.run_dir, [entry, last])
    return _Round(Trained(curated.manifest.path, trained.run_dir, first_step, trained.steps), trained.checkpoint,
                  last.cached)


def _heldout(config: RunConfig) -> ArtifactRef:
    assert config.data.heldout is not None, "checked before the flow starts"
    files = sources.find_files(config.data.heldout, Path(config.base))
    rows, _ = run_stage(config, heldout, config.root, files, config.data, sources.content_hash(files),
                        size=files[0].name)
    return rows


def _drop_share(config: RunConfig, name: str, seed: int) -> float | None:
    """What a random filter drops: as much as the probe of another arm does, with the same seed."""
    other = random_filter_of(config.compare, name)
    if other is None:
        return None
    header = read_manifest(curate(arm_config(config, other, seed)).manifest.path)
    return header["prompts"]["dropped_by_reason"].get("low_quality", 0) / header["health"]["prompts"]


def _write(folder: Path, comparison: Comparison) -> None:
    from saerl_core.report.comparison import comparison_page

    write_file(folder / "comparison.json", (comparison.model_dump_json(indent=1) + "\n").encode())
    write_file(folder / "report.html", comparison_page(comparison).encode())
