"""verl's metrics as a table: one row a step, plain names first, every original column after them.

Each attempt of a job writes a file of its own (verl would truncate a shared one), `metrics/attempt-0001.jsonl` and so
on. A step that was run again after a crash occurs in two of them: the later attempt wins. A validation before an
attempt's first step adds to what is known of the step before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

PLAIN_NAMES: dict[str, tuple[str, ...]] = {
    "reward_mean": ("critic/score/mean",),
    "response_length_mean": ("response_length/mean",),
    "response_clipped_share": ("response_length/clip_ratio",),
    "pg_loss": ("actor/pg_loss",),
    "ppo_kl": ("actor/ppo_kl",),
    "kl": ("actor/kl_loss",),
    "clipfrac": ("actor/pg_clipfrac",),
    "entropy": ("actor/entropy", "actor/entropy_loss"),
    "grad_norm": ("actor/grad_norm",),
    "lr": ("actor/lr",),
    "rollout_log_prob_gap": ("training/rollout_probs_diff_mean",),
    "seconds": ("timing_s/step",),
}
"""Our name → verl's, the first that it reports. A column is null where it reports none."""

HELDOUT = "heldout_accuracy"
_HELDOUT_KEY = "val-core/"


def metric_files(folder: Path) -> list[Path]:
    """The attempts' files, oldest first."""
    return sorted(folder.glob("attempt-*.jsonl"))


def read_metrics(folder: Path) -> pl.DataFrame:
    """The metrics of all attempts.

    Returns:
        One row a step, ascending: `step` (Int64), `heldout_accuracy` and the names of `PLAIN_NAMES` (Float64, null
        where there is none), then verl's own columns.
    """
    return table(line for path in metric_files(folder) for line in path.read_text(encoding="utf-8").splitlines())


def table(lines: Iterable[str]) -> pl.DataFrame:
    """Lines of verl's file logger → the table of `read_metrics`. A line that was cut off by a crash is left out."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in lines:
        row = parse_line(line)
        if row is not None:
            known = {name: value for name, value in row.items() if value is not None}
            by_step[row["step"]] = {**by_step.get(row["step"], {}), **known}
    originals = sorted({key for row in by_step.values() for key in row} - {"step", HELDOUT, *PLAIN_NAMES})
    columns = ["step", HELDOUT, *PLAIN_NAMES, *originals]
    schema = {name: pl.Int64 if name == "step" else pl.Float64 for name in columns}
    rows = [[row.get(name) for name in columns] for _, row in sorted(by_step.items())]
    return pl.DataFrame(rows, schema=schema, orient="row")


def parse_line(line: str) -> dict[str, Any] | None:
    """One line of verl's file logger → numbers by name, plain names included; None where it is not one."""
    try:
        entry = json.loads(line)
        step, data = int(entry["step"]), entry["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = {key: float(value) for key, value in data.items() if isinstance(value, int | float)}
    plain = {
        name: next((numbers[key] for key in keys if key in numbers), None) for name, keys in PLAIN_NAMES.items()
    }
    return {**numbers, **plain, "step": step, HELDOUT: _heldout(numbers)}


def _heldout(numbers: dict[str, float]) -> float | None:
    """verl names its validation figure after data source, reward key and sample count."""
    found = [value for key, value in numbers.items() if key.startswith(_HELDOUT_KEY) and "/mean@" in key]
    return sum(found) / len(found) if found else None
