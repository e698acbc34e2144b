"""What the training's report page is told about the rewards that were seen."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from flows.train import _rewards


def record(run_dir: Path, rewards: list[float] | None) -> None:
    folder = run_dir / "consumed"
    folder.mkdir(exist_ok=True)
    line = {"step": 1, "ids": ["a", "b"], "keys": ["k1", "k2"], "answers": [4, 4], "rewards": rewards}
    (folder / "step-000001.json").write_text(json.dumps(line))


def test_rewards_carry_the_difficulty_that_the_manifest_predicted(tmp_path: Path) -> None:
    rows = pl.DataFrame({"key": ["k2", "k1", "k2"], "difficulty": [0.9, 0.1, 0.9], "batch": [0, 0, 1]})
    record(tmp_path, [3.0, 1.0])
    found = _rewards(tmp_path, rows)
    assert found is not None
    assert found.select("key", "difficulty", "successes", "trials").rows() == [("k1", 0.1, 3.0, 4), ("k2", 0.9, 1.0, 4)]


def test_records_without_rewards_leave_the_comparison_out(tmp_path: Path) -> None:
    record(tmp_path, None)
    assert _rewards(tmp_path, pl.DataFrame({"key": ["k1"], "difficulty": [0.1]})) is None
