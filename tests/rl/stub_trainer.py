"""Stands in for the interpreter that runs verl: does what a job does to its folder, in milliseconds.

Reads the job's overrides from its command line and its orders from the environment:

    STUB_DIE_AT    step at which it dies, once (a second attempt lives)
    STUB_DIE_ALWAYS=1  dies at that step in every attempt
    STUB_SWAP_AT   step at which it trains on another batch
    STUB_SLEEP     seconds per step
    STUB_CHILD=1   leaves a grandchild running that nobody waits for
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl


def main() -> None:
    settings = dict(arg.lstrip("+").split("=", 1) for arg in sys.argv[1:] if "=" in arg)

    def text(key: str) -> str:
        return settings[key].strip("'")

    checkpoints = Path(text("trainer.default_local_dir"))
    run_dir = checkpoints.parent
    batch_size, steps = int(text("data.train_batch_size")), int(text("trainer.total_training_steps"))
    save_every = int(text("trainer.save_freq"))
    rows = pl.read_parquet(text("data.train_files"))["extra_info"].struct.unnest().select("id", "key").rows()
    test_every = int(text("trainer.test_freq"))
    heldout = pl.read_parquet(text("data.val_files"))["extra_info"].struct.unnest() if test_every > 0 else None
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    first = int(tracker.read_text()) + 1 if tracker.exists() else 1
    if os.environ.get("STUB_CHILD"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if heldout is not None and text("trainer.val_before_train").lower() == "true":
        _validate(run_dir, first - 1, heldout)
    for step in range(first, steps + 1):
        time.sleep(float(os.environ.get("STUB_SLEEP", "0")))
        _die_if_told(run_dir, step)
        batch = step if os.environ.get("STUB_SWAP_AT") != str(step) else step - 1
        _record(run_dir, step, rows[(batch - 1) * batch_size : batch * batch_size])
        if step % save_every == 0 or step == steps:
            _save(checkpoints, tracker, step, Path(text("actor_rollout_ref.model.path")))
        if heldout is not None and (step % test_every == 0 or step == steps):
            _validate(run_dir, step, heldout)
        with Path(os.environ["VERL_FILE_LOGGER_PATH"]).open("a") as file:
            data = {"critic/score/mean": step / 10, "timing_s/step": 0.1, "attempt": first,
                    "prompt_length/mean": 30.0, "response_length/mean": 20.0}
            file.write(json.dumps({"step": step, "data": data}) + "\n")


def _die_if_told(run_dir: Path, step: int) -> None:
    died = run_dir / "died"
    if os.environ.get("STUB_DIE_AT") == str(step) and (os.environ.get("STUB_DIE_ALWAYS") or not died.exists()):
        died.touch()
        raise ValueError(f"told to die at step {step}")


def _record(run_dir: Path, step: int, rows: list[tuple[str, str]]) -> None:
    folder = run_dir / "consumed"
    folder.mkdir(exist_ok=True)
    record = {"step": step, "ids": [prompt_id for prompt_id, _ in rows], "keys": [key for _, key in rows],
              "answers": [4] * len(rows), "rewards": [float(place % 5) for place in range(len(rows))]}
    (folder / f"step-{step:06d}.json").write_text(json.dumps(record))


def _validate(run_dir: Path, step: int, heldout: pl.DataFrame) -> None:
    """Every row is answered right once training has come to its place in the file."""
    folder = run_dir / "validated"
    folder.mkdir(exist_ok=True)
    record = {"step": step, "ids": heldout["id"].to_list(),
              "greedy": heldout["greedy"].to_list() if "greedy" in heldout.columns else [False] * heldout.height,
              "rewards": [float(index < 2 * step) for index in heldout["index"]]}
    (folder / f"step-{step:06d}.json").write_text(json.dumps(record))


def _save(checkpoints: Path, tracker: Path, step: int, policy: Path) -> None:
    folder = checkpoints / f"global_step_{step}"
    shutil.copytree(policy, folder / "actor" / "huggingface")
    (folder / "actor" / "optim.pt").write_text(f"moments at step {step}")
    (folder / "data.pt").write_text("place in the data")
    tracker.write_text(str(step))


if __name__ == "__main__":
    main()
