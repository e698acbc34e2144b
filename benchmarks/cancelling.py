"""What cancelling a training in the UI leaves of it.

    python -m benchmarks.cancelling

A training with real verl, on a real `saerl serve`, is cancelled in the UI's way and started again: what is left of its
processes, how soon they have ended, and from which checkpoint the new run goes on. About three minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from benchmarks.faults import GONE_SECONDS, STEPS, wanted_batches, world
from benchmarks.served import served, switch_off, until
from saerl_core.rl.checkpoints import step_named
from saerl_core.rl.consumed import consumed_batches
from saerl_core.rl.metrics import parse_line
from saerl_core.rl.process import RECORD, ProcessRecord, members


@dataclass(frozen=True)
class Cancelled:
    """What cancelling a training leaves, and what a new run of its deployment makes of that."""

    step: int
    """the last one taken when it was cancelled"""
    seconds: float
    """until all its processes had ended"""
    ended: int
    """processes that the job had"""
    left: int
    """of them, after some patience"""
    checkpoint: int | None
    """step of the checkpoint that stayed"""
    steps_again: list[int]
    """steps that the new run took"""
    same_batches: bool
    """every step took the manifest's batch"""

    def sound(self) -> bool:
        """Whether nothing was left but the checkpoint, and the new run went on from there."""
        return self.left == 0 and self.checkpoint is not None and self.same_batches and \
            self.steps_again == list(range(self.checkpoint + 1, STEPS + 1))


def cancel_training(folder: Path, **changes: dict[str, Any]) -> Cancelled:
    """Serve a config, curate, cancel the training that follows once a checkpoint is there, and start it again."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.yaml"
    short = {"schedule": {"steps": STEPS}, "labels": {"source": "none"},
             "quality": {"method": "none", "suspect_answers": False}}
    config.write_text(yaml.safe_dump(world(folder, **{**short, **changes})))
    with served(config) as http, SyncPrefectClient(str(http.base_url)) as api:
        def run_of(flow: str, **parameters: Any) -> FlowRun:
            deployment = api.read_deployment_by_name(f"{flow}/faults")
            return api.create_flow_run_from_deployment(deployment.id, parameters=parameters)

        def ended(run: FlowRun) -> FlowRun | None:
            found = api.read_flow_run(run.id)
            return found if found.state is not None and found.state.is_final() else None

        switch_off(http, "train")
        curation = run_of("curate")
        until(lambda: ended(curation), 300)
        (manifest,) = (folder / "out" / "manifests").iterdir()
        training = run_of("train", manifest=str(manifest))
        run = until(lambda: next(iter(folder.glob("out/runs/faults-*")), None), 300)

        def past_a_checkpoint() -> int | None:
            saved = step_named(run / "checkpoints")
            taken = max(consumed_batches(run), default=0)
            assert ended(training) is None, ended(training)
            return taken if saved is not None and taken > saved else None

        step = until(past_a_checkpoint, 300)
        job = members(run, ProcessRecord(**json.loads((run / RECORD).read_text())))
        began = time.monotonic()
        api.set_flow_run_state(training.id, Cancelling())
        left = psutil.wait_procs(job, timeout=GONE_SECONDS)[1]
        seconds = time.monotonic() - began
        assert until(lambda: ended(training), 60).state_name == "Cancelled"
        kept = step_named(run / "checkpoints")
        attempts = set((run / "metrics").iterdir())
        second = run_of("train", manifest=str(manifest))
        state = until(lambda: ended(second), 600).state
        assert state is not None
        assert state.is_completed(), state.message
    lines = [line for path in sorted(set((run / "metrics").iterdir()) - attempts)
             for line in path.read_text().splitlines()]
    return Cancelled(
        step, round(seconds, 1), ended=len(job), left=len(left), checkpoint=kept,
        steps_again=[row["step"] for row in filter(None, map(parse_line, lines))],
        same_batches=consumed_batches(run) == wanted_batches(manifest))


def main() -> None:
    """Print a JSON line; exit code 1 where something was left."""
    with tempfile.TemporaryDirectory(prefix="sf-") as folder:
        found = cancel_training(Path(folder))
    sys.stdout.write(json.dumps({"sound": found.sound(), **asdict(found)}) + "\n")
    sys.exit(not found.sound())


if __name__ == "__main__":
    main()
