"""Where was there something to learn? Reads the runs of a finished comparison of the toy (`benchmarks.grpo`).

    python -m benchmarks.learning [WORKSPACE]

The first table is about arms: how often answers were right, how many groups of answers had an advantage at all, how
many of those had a wrong key, and how much the mean reward of a batch moved from step to step (what mixing might
calm). The second is about prompts: the baseline's, by the difficulty that the SAE's probe predicts and by length, in
five equal parts; `progress` is how much more often its prompts are solved in the last ten steps than in the first ten.
Figures are means over seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from saerl_core.rl.consumed import consumed_batches, observed_rewards
from saerl_core.rl.metrics import read_metrics

POOL = Path("saerl-out/benchmark")
_RUN = re.compile(r"toy-benchmark-(?P<arm>.+)-(?P<seed>\d+)-[0-9a-f]{12}")
_MANY = 10
"""Steps at the beginning and at the end."""
_PARTS = 5


def read_run(run: Path, truth: pl.DataFrame) -> pl.DataFrame:
    """A row for each prompt of each step: what is known of it, its pass rate, whether its group has an advantage."""
    rate, step = pl.col("successes") / pl.col("trials"), pl.col("step")
    return observed_rewards(run).join(truth, on="id").with_columns(
        rate=rate, advantage=(rate > 0) & (rate < 1), wrong=pl.col("defect") == "wrong_key",
        first=step <= _MANY, last=step > step.max() - _MANY)


def about_arm(rows: pl.DataFrame, run: Path) -> dict[str, float]:
    """One line of the first table."""
    found: dict[str, float] = {}
    for name in ("first", "last"):
        part = rows.filter(name)
        learned = part.filter("advantage")
        found |= {f"right, {name} ten": _mean(part["rate"]), f"with advantage, {name} ten": _mean(part["advantage"]),
                  f"of these wrong keys, {name} ten": _mean(learned["wrong"])}
    batch = rows.group_by("step").agg(pl.col("rate").mean()).sort("step")["rate"].to_numpy()
    metrics = read_metrics(run / "metrics")
    return found | {"sd of a batch's reward about its trend": float(np.std(batch - _trend(batch))),
                    "gradient norm": _mean(metrics["grad_norm"])}


def about_prompts(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """The second table for one seed: five equal parts by a column."""
    part = ((pl.col(column).rank("ordinal") - 1) * _PARTS // pl.len()).alias("part")
    return rows.drop_nulls(column).with_columns(part).group_by("part").agg(
        first=pl.col("rate").filter("first").mean(), last=pl.col("rate").filter("last").mean(),
        advantage=pl.col("advantage").mean(), wrong=pl.col("wrong").filter("advantage").mean()).sort("part")


def _finished(run: Path) -> bool:
    return len(consumed_batches(run)) == _job(run)["steps"]


def _job(run: Path) -> dict[str, Any]:
    return json.loads((run / "job.json").read_text(encoding="utf-8"))


def _trend(values: np.ndarray) -> np.ndarray:
    steps = np.arange(len(values))
    return np.polyval(np.polyfit(steps, values, 2), steps)


def _mean(values: pl.Series) -> float:
    return float(values.to_numpy().mean())


def _difficulty(workspace: Path, run: Path) -> pl.DataFrame:
    """What a run's manifest predicted of every prompt."""
    return pl.read_parquet(workspace / "manifests" / _job(run)["manifest"] / "scores.parquet",
                           columns=["id", "difficulty"])


def main() -> None:
    """Print both tables, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, nargs="?", default=POOL)
    workspace = parser.parse_args().workspace
    pool = pl.read_ndjson(workspace / "pool.jsonl.gz")
    truth = pool.select("id", "defect", length=pl.col("problem").str.len_chars())
    runs = {(found["arm"], int(found["seed"])): path for path in sorted((workspace / "runs").iterdir())
            if (found := _RUN.fullmatch(path.name)) and not found["arm"].startswith("rounds") and _finished(path)}
    arms: dict[str, list[dict[str, float]]] = {}
    prompts: dict[str, list[pl.DataFrame]] = {"difficulty": [], "length": []}
    for (arm, seed), run in runs.items():
        rows = read_run(run, truth)
        arms.setdefault(arm, []).append(about_arm(rows, run))
        if arm == "vanilla" and ("paper", seed) in runs:
            rows = rows.join(_difficulty(workspace, runs["paper", seed]), on="id", how="left")
            for column, found in prompts.items():
                found.append(about_prompts(rows, column))
    figures = {arm: {name: float(np.mean([one[name] for one in found])) for name in found[0]}
               for arm, found in arms.items()}
    names = list(next(iter(figures.values())))
    lines = [f"| arm | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {arm} | {' | '.join(f'{line[name]:.3f}' for name in names)} |" for arm, line in figures.items()]
    parts: dict[str, list[dict[str, float]]] = {}
    for column, found in prompts.items():
        mean = pl.concat(found).group_by("part").mean().sort("part")
        mean = mean.with_columns(progress=pl.col("last") - pl.col("first"))
        parts[column] = mean.to_dicts()
        lines += ["", f"| by {column} | {' | '.join(mean.columns[1:])} |", "|---" * len(mean.columns) + "|"]
        lines += [f"| {part + 1} of {_PARTS} | {' | '.join(f'{value:.3f}' for value in rest)} |"
                  for part, *rest in mean.iter_rows()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(json.dumps({"arms": figures, "prompts": parts}) + "\n")


if __name__ == "__main__":
    main()
