"""verl's JSON lines become one row a step with plain names."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from saerl_core.rl.metrics import parse_line, read_metrics, table


def _line(step: int, **data: float) -> str:
    return json.dumps({"step": step, "data": data})


def test_plain_names_come_first_and_originals_stay() -> None:
    numbers = {"critic/score/mean": 0.25, "timing_s/step": 2.0, "actor/entropy_loss": 0.5, "odd/x": 3}
    frame = table([_line(1, **numbers)])
    row = frame.row(0, named=True)
    assert frame.columns[:2] == ["step", "heldout_accuracy"]
    assert (row["reward_mean"], row["seconds"], row["entropy"]) == (0.25, 2.0, 0.5)
    assert (row["critic/score/mean"], row["odd/x"], row["kl"]) == (0.25, 3.0, None)


def test_heldout_accuracy_is_found_under_verls_name() -> None:
    frame = table([_line(1, a=1), _line(2, **{"val-core/toy/acc/mean@1": 0.5, "val-aux/toy/reward/mean@1": 0.9})])
    assert frame["heldout_accuracy"].to_list() == [None, 0.5]


def test_a_step_that_was_run_again_counts_once_and_last(tmp_path: Path) -> None:
    (tmp_path / "attempt-0001.jsonl").write_text("\n".join(_line(k, **{"actor/lr": 1.0}) for k in (1, 2, 3)))
    (tmp_path / "attempt-0002.jsonl").write_text("\n".join(_line(k, **{"actor/lr": 2.0}) for k in (3, 4)))
    frame = read_metrics(tmp_path)
    assert frame["step"].to_list() == [1, 2, 3, 4]
    assert frame["lr"].to_list() == [1.0, 1.0, 2.0, 2.0]


def test_a_line_cut_off_by_a_crash_is_left_out() -> None:
    assert table([_line(1, a=1), '{"step": 2, "da'])["step"].to_list() == [1]
    assert parse_line("[]") is None
    assert parse_line('{"step": null, "data": {}}') is None


def test_a_job_that_has_not_begun_has_an_empty_table(tmp_path: Path) -> None:
    frame = read_metrics(tmp_path)
    assert frame.height == 0
    assert frame.schema["step"] == pl.Int64
    assert frame.schema["reward_mean"] == pl.Float64
