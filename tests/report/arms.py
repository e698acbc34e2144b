"""A made-up comparison, set side by side by the code that does so for real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from saerl_core.compare import gather
from saerl_core.compare.arms import BUILT_IN
from saerl_core.compare.gather import Seeded
from saerl_core.compare.result import Comparison
from saerl_core.config import build_config

SPEED = {"vanilla": 1.0, "saerl": 1.7, "diversity": 1.1, "difficulty": 1.4, "quality": 1.15, "no-diversity": 1.6,
         "no-difficulty": 1.2, "no-quality": 1.45, "length": 1.3, "nll": 1.2, "level": 1.65, "dense": 1.6,
         "random-projection": 1.68, "shuffled-labels": 1.0, "random-filter": 0.95}
"""How fast each arm learns, in vanilla's time."""
_STEPS, _EVERY = 200, 20


def make(seeds: Mapping[str, Sequence[int]], *, levels: bool = True, speed: Mapping[str, float] = SPEED,
         settings: Mapping[str, Any] | None = None, steps: int = _STEPS) -> Comparison:
    """A comparison of these arms with these seeds, the first one the baseline."""
    names = list(seeds)
    config = build_config({
        "name": "made-up", "data": {"path": "d"}, "features": {"model": "m", "sae": "s"}, "policy": {"model": "m"},
        "schedule": {"steps": steps},
        "compare": {"baseline": names[0], "evaluate_every": _EVERY,
                    "arms": {name: (settings or {}).get(name, {}) for name in names}},
    }, Path())
    comparison = gather.compare(config, {name: [seeded(name, seed, speed.get(name, 1.3), levels, steps)
                                                for seed in own] for name, own in seeds.items()})
    return comparison.model_copy(update={"arms": [arm.model_copy(update={"runs": [
        run.model_copy(update={"manifests": [f"{run.seed:02x}" * 32], "runs": [f"made-up-{arm.name}-{run.seed}"],
                               "kept": 2000, "dropped": {"duplicate": 26, "low_quality": 141}})
        for run in arm.runs]}) for arm in comparison.arms]})


def all_arms(*seeds: int) -> dict[str, Sequence[int]]:
    """Every built-in arm with the same seeds."""
    return dict.fromkeys(BUILT_IN, seeds)


def seeded(name: str, seed: int, speed: float, levels: bool = True, steps: int = _STEPS) -> Seeded:
    """One arm with one seed, without the records of a training; the problems of a seed are as hard for all arms."""
    shared, own = np.random.default_rng(seed), np.random.default_rng([seed, *name.encode()])
    luck = shared.normal(0, 0.015)
    at = np.arange(0, steps + 1, _EVERY)

    def curve(height: float) -> np.ndarray:
        return 0.24 + luck + height * (1 - np.exp(-speed * at / 120)) + own.normal(0, 0.006, len(at))

    sampled, greedy = curve(0.22), curve(0.26)
    step = np.arange(1, steps + 1)
    ordered = name not in ("vanilla", "diversity", "quality", "no-difficulty", "random-filter")
    hard = np.clip(np.where(ordered, 0.15 + 0.7 * step / steps, 0.5) + own.normal(0, 0.02, steps), 0, 1)
    batches = pl.DataFrame({
        "step": step,
        "difficulty": hard if ordered else pl.Series([None] * steps, dtype=pl.Float64),
        "level": 1 + 5 * hard if levels else pl.Series([None] * steps, dtype=pl.Float64),
        "reward": np.clip(1 - hard + 0.2 * step / steps + own.normal(0, 0.05, steps), 0, 1),
        "spread": np.clip(0.55 + own.normal(0, 0.06, steps), 0, 1),
        "clusters": own.integers(3, 6, steps).astype(float) if ordered else own.integers(15, 22, steps).astype(float),
    })
    groups = {"level": {str(level): float(np.clip(sampled[-1] + 0.3 - 0.11 * level, 0, 1)) for level in range(1, 7)},
              "subject": {subject: float(sampled[-1] + own.normal(0, 0.03)) for subject in ("money", "rates", "time")}}
    return Seeded(seed=seed, rounds=[], curve=pl.DataFrame({"step": at, "sampled": sampled, "greedy": greedy}),
                  problems=1000, groups=groups if levels else {}, batches=batches,
                  curation_flops=0.0 if name == "vanilla" else 2e12, step_flops=[1e11] * steps)
