"""From a change on disk to a finished rerun, on a real server: how soon it begins, and how much of it is done again.

    python -m benchmarks.triggers

Starts `saerl serve` on a small curation of the toy, in a folder of its own, and takes about ten minutes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import safetensors.numpy
import yaml

from benchmarks.served import served, switch_off, until
from flows.watch import HOLD_SECONDS
from saerl_core.locations import resolve

ROWS = 400
CHANGED = 5
"""Rows that are changed each time."""
_QUIET_SECONDS = 8.0


def config(folder: Path) -> dict[str, Any]:
    """A curation of toy prompts with everything in it, small enough to finish in seconds."""
    columns = {"id": "id", "prompt": "problem", "answer": "answer"}
    return {
        "name": "bench", "workspace": str(folder / "out"),
        "data": {"path": str(folder / "prompts.jsonl"), "name": "toy", "columns": columns,
                 "heldout": {"path": "saerl:toy/heldout.jsonl.gz", "columns": columns}},
        "features": {"model": "saerl:toy/lm", "sae": str(folder / "sae"), "shard_rows": 128},
        "clusters": {"k": 8}, "labels": {"source": "none"}, "quality": {"count": 60}, "schedule": {"batch_size": 16},
        "policy": {"model": "saerl:toy/lm", "max_prompt_tokens": 128, "max_response_tokens": 64},
    }


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """All figures, from a fresh workspace in `folder`."""
    rows = _toy_rows()
    data, sae = folder / "prompts.jsonl", folder / "sae"
    _write(data, rows)
    shutil.copytree(resolve("saerl:toy/sae", folder), sae)
    (folder / "bench.yaml").write_text(yaml.safe_dump(config(folder)))
    with served(folder / "bench.yaml") as api:
        until(lambda: (folder / "out/watch/bench.json").exists() or None, 120)  # the watcher has looked once
        curations = _Curations(api)
        switch_off(api, "train")
        _run_now(api)
        curations.wait(1)
        found: dict[str, Any] = {"first_run_rows_read": _rows_read(folder)}

        _say("a file that is touched")
        for _ in range(3):
            data.touch()
            time.sleep(_QUIET_SECONDS / 2)
        found["runs_after_three_touches"] = curations.count() - 1

        _say("a data set that changes")
        created, finished, read = [], [], []
        for number in range(repeats):
            time.sleep(HOLD_SECONDS + 1)  # each change is one of its own
            before, runs = _rows_read(folder), curations.count()
            for row in rows[number * CHANGED : (number + 1) * CHANGED]:
                row["problem"] = f"Once more. {row['problem']}"
            changed_at = _write(data, rows)
            run = curations.wait(runs + 1)
            created.append(_time(run["created"]) - changed_at)
            finished.append(_time(run["end_time"]) - changed_at)
            read.append(_rows_read(folder) - before)
        found |= {"seconds_to_created": created, "seconds_to_finished": finished, "rows_changed": CHANGED,
                  "rows_read": read}

        _say("an SAE that changes")
        before, runs = _rows_read(folder), curations.count()
        changed_at = _change_sae(sae)
        run = curations.wait(runs + 1)
        found |= {"sae_seconds_to_created": _time(run["created"]) - changed_at,
                  "sae_rows_read": _rows_read(folder) - before}

        _say("ten changes in a burst")
        time.sleep(HOLD_SECONDS + 1)
        runs = curations.count()
        for number in range(10):
            rows[number]["problem"] = f"And again. {rows[number]['problem']}"
            _write(data, rows)
            time.sleep(1.0)
        time.sleep(HOLD_SECONDS + _QUIET_SECONDS)
        found["runs_after_ten_changes"] = curations.count() - runs
    return found


class _Curations:
    """The runs of flow `curate` that were made by hand or by a trigger, not by the schedule."""

    def __init__(self, api: httpx.Client) -> None:
        self._api = api

    def all(self) -> list[dict[str, Any]]:
        body = {"flows": {"name": {"any_": ["curate"]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs = self._api.post("/flow_runs/filter", json=body).raise_for_status().json()
        return [run for run in runs if not run["auto_scheduled"]]

    def count(self) -> int:
        return len(self.all())

    def wait(self, number: int, seconds: float = 300) -> dict[str, Any]:
        """The run with this number, once it has completed."""
        def completed() -> dict[str, Any] | None:
            runs = self.all()
            if len(runs) < number or runs[number - 1]["end_time"] is None:
                return None
            assert runs[number - 1]["state_type"] == "COMPLETED", runs[number - 1]["state"]
            return runs[number - 1]

        return until(completed, seconds)


def _run_now(api: httpx.Client) -> None:
    deployment = api.get("/deployments/name/curate/bench").raise_for_status().json()
    api.post(f"/deployments/{deployment['id']}/create_flow_run", json={}).raise_for_status()


def _rows_read(folder: Path) -> int:
    """Rows in all feature stores: what was ever read through a model."""
    segments = (folder / "out/features").glob("*/*.safetensors")
    return sum(len(safetensors.numpy.load_file(segment)["keys"]) for segment in segments)


def _change_sae(folder: Path) -> float:
    path = folder / "sae_weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["b_enc"] = weights["b_enc"] + np.float32(0.01)
    path.write_bytes(safetensors.numpy.save(weights))
    return time.time()


def _toy_rows() -> list[dict[str, Any]]:
    with gzip.open(resolve("saerl:toy/train.jsonl.gz", Path()), "rt") as file:
        return [json.loads(line) for line in file][:ROWS]


def _write(path: Path, rows: list[dict[str, Any]]) -> float:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return time.time()


def _time(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _say(what: str) -> None:
    sys.stderr.write(f"{what} ...\n")


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="changes of the data set that are timed")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="saerl-triggers-") as folder:
        found = measure(Path(folder), repeats)
    created, finished = found["seconds_to_created"], found["seconds_to_finished"]
    lines = [
        ("data changed → run created", f"median {statistics.median(created):.2f} s (of {repeats}; worst "
                                       f"{max(created):.2f} s)"),
        ("data changed → run finished", f"median {statistics.median(finished):.1f} s"),
        ("rows changed, and read again", f"{found['rows_changed']}, {sorted(set(found['rows_read']))}"),
        ("SAE changed → run created", f"{found['sae_seconds_to_created']:.2f} s"),
        ("rows read again", f"{found['sae_rows_read']} of {found['first_run_rows_read']}"),
        ("file touched three times → runs", str(found["runs_after_three_touches"])),
        ("ten changes in ten seconds → runs", str(found["runs_after_ten_changes"])),
    ]
    for name, value in lines:
        sys.stdout.write(f"{name:<36} {value}\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
