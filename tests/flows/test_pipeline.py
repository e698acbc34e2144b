"""The whole of it, once, with real Ray and real verl: curate, train, be killed, go on, do nothing the second time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import yaml

from saerl_core.rl.consumed import consumed_batches
from tests.flows.conftest import make_config, toy_rows, write_rows
from tests.outside import addresses_heard, words

STEPS = 6


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", "run", str(config), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=config.parent)


def finish(config: Path) -> dict[str, Any]:
    process = start(config)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return json.loads(out)


def processes_of(workspace: Path) -> list[int]:
    """Processes whose command line names the workspace."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(workspace) in part for part in process.info["cmdline"] or []) and process.pid != os.getpid():
            found.append(process.pid)
    return found


@pytest.mark.e2e
def test_a_run_that_is_killed_goes_on_batch_for_batch_and_a_second_run_trains_nothing(tmp_path: Path) -> None:
    columns = {"id": "id", "prompt": "problem", "answer": "answer"}
    write_rows(tmp_path / "heldout.jsonl", toy_rows(30, start=1000))
    config = make_config(
        tmp_path, data={"path": "prompts.jsonl", "name": "toy", "columns": columns,
                        "heldout": {"path": "heldout.jsonl", "columns": columns}},
        policy={"model": "saerl:toy/lm", "max_prompt_tokens": 64, "max_response_tokens": 56},
        schedule={"batch_size": 8, "steps": STEPS},
        train={"rollouts": 4, "learning_rate": 1e-3, "micro_batch_size": 32, "save_every": 2, "test_every": 4,
               "test_prompts": 16},
        evaluation={"prompts": 20, "samples": 2})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"base"})))

    first = start(path)
    killed_at = _wait_for_step(tmp_path, 3, first)
    family = psutil.Process(first.pid).children(recursive=True)
    assert any("raylet" in part for part in words(family))
    assert addresses_heard(family) == {"127.0.0.1"}
    for process in family:  # all at once, as when a machine goes down
        with suppress(psutil.NoSuchProcess):
            process.kill()
    first.kill()
    first.wait()

    outcome = finish(path)
    manifest, run = Path(outcome["manifest"]), Path(outcome["train"]["run"])
    assert outcome["prompts"]["read"] == outcome["prompts"]["kept"] + outcome["prompts"]["dropped"] == 160
    assert outcome["batches"] == outcome["train"]["steps"] == STEPS
    assert outcome["prompts_read_by_model"] == 0
    assert 0 < outcome["train"]["steps_run_now"] < STEPS, f"killed at step {killed_at}, yet nothing was resumed"
    assert {"accuracy_before", "accuracy_after", "checkpoint"} <= outcome["train"].keys()

    extra = pl.read_parquet(manifest / "train.parquet")["extra_info"].struct.unnest()
    wanted = {batch + 1: ids for batch, ids in extra.group_by("batch", maintain_order=True).agg("id").iter_rows()}
    assert consumed_batches(run) == wanted

    second = finish(path)
    assert second["train"]["steps_run_now"] == 0
    assert second["prompts_read_by_model"] == 0
    assert all(stage["cached"] for stage in second["stages"] if stage["stage"] != "fingerprint")
    assert second["manifest"] == outcome["manifest"]
    assert second["train"]["checkpoint"] == outcome["train"]["checkpoint"]
    assert processes_of(tmp_path) == []


def _wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        runs = (folder / "saerl-out" / "runs").glob("*-*")
        seen = max((max(consumed_batches(run), default=0) for run in runs), default=0)
        if seen >= step:
            return seen
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    raise AssertionError("training did not get far enough")
