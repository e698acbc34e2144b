"""What SIGKILL costs: the pipeline is killed at random moments over all stages, then simply run again.

    python -m benchmarks.faults [--moments 50] [--training 6] [--seed 0] [--workers 2]

Each kill has a workspace of its own, and a real server; every fifth curation brings its own (Prefect's ephemeral mode).
Two of three kills take the whole process tree at once, as when a machine goes down, the others the command alone, whose
children must then end by themselves. `--training` of the moments fall into a training with real verl on the CPU. About
twenty minutes on four cores.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import psutil
import yaml

from saerl_core.locations import resolve
from saerl_core.manifest import verify_manifest
from saerl_core.rl.consumed import consumed_batches

ROWS = 320
SHARD_ROWS = 64
STEPS = 6
CASE = "SAERL_FAULT_CASE"
"""Environment variable by which all processes of a case are known."""
GONE_SECONDS = 30.0
"""The patience with processes that are to end."""
_BLINK = 0.15
"""A stage takes at least so many seconds, with what Prefect does around it."""

_COUNTED = """
import sys
from flows import cli
from tasks import extract as stage
counts, read = sys.argv.pop(1), stage.extract_tokens
def counted(backbone, encoder, ids, *rest):
    with open(counts, "a") as file:
        file.write(f"{len(ids)}\\n")
    return read(backbone, encoder, ids, *rest)
stage.extract_tokens = counted
cli.main()
"""
"""`saerl`, which notes how many prompts it is about to read, shard by shard."""


@dataclass(frozen=True)
class Moment:
    """When a run is killed, and how."""

    number: int
    stage: str
    share: float
    """of the stage's usual time"""
    tree: bool
    """the whole process tree at once, or the command alone"""
    ephemeral: bool = False
    """the command brings a server of its own, which must not outlive it"""


@dataclass(frozen=True)
class Aftermath:
    """What a plain rerun gave."""

    number: int
    aimed_at: str
    killed_in: str
    tree: bool
    ephemeral: bool
    same_bytes: bool
    """manifest as of an undisturbed run; of a training: every step took the manifest's batch"""
    read_again: int
    """prompts that went through the reader a second time"""
    leftovers: list[str]
    orphans: int
    seconds: float
    """of the rerun"""

    def sound(self) -> bool:
        """Whether nothing was lost but the shard in flight, and nothing was left behind."""
        return self.same_bytes and self.read_again <= SHARD_ROWS and not self.leftovers and not self.orphans


@dataclass(frozen=True)
class Undisturbed:
    """The same run when nobody kills it."""

    digest: str
    read: int
    stages: dict[str, float]
    """seconds by stage, in their order; the first is the start"""


class Case:
    """A folder with a small world: prompts, config, workspace, and what its processes leave in their temporary one."""

    def __init__(self, folder: Path, api: str | None, **changes: dict[str, Any]) -> None:
        self.workspace, self.config, self.counts = folder / "out", folder / "run.yaml", folder / "counts"
        self.temporary, self.log = folder / "t", folder / "log"
        self.temporary.mkdir(parents=True)
        self.config.write_text(yaml.safe_dump(world(folder, **changes)))
        self.token = f"{folder.name}-{random.SystemRandom().getrandbits(64):x}"
        server = {"PREFECT_API_URL": api} if api else {"PREFECT_HOME": str(folder / "prefect")}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
        self.environment = {**clean, **server, CASE: self.token, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1",
                            "HF_HUB_OFFLINE": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`saerl ARGUMENTS --json`, its lines about stages in the case's log."""
        command = [sys.executable, "-c", _COUNTED, str(self.counts), *arguments, "--json"]
        with self.log.open("w") as log:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment)

    def finish(self, *arguments: str) -> dict[str, Any]:
        """Run it to its end; its outcome."""
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=900)
        assert process.returncode == 0, self.log.read_text()
        return json.loads(out)

    def stages_done(self) -> list[str]:
        """Stages that have ended, by the lines that a user sees."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split("✓ ")[1][:22].strip() for line in lines if "✓ " in line]

    def processes(self) -> list[psutil.Process]:
        """All living processes that this case has started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(CASE) == self.token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self, process: subprocess.Popen[str], *, tree: bool) -> int:
        """SIGKILL. Returns how many processes were left when they should have ended."""
        process.kill()
        while tree and (rest := self.processes()):
            for one in rest:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(rest, timeout=1)
        process.communicate()
        return self.orphans()

    def orphans(self) -> int:
        """Processes that are there still, after some patience."""
        deadline = time.monotonic() + GONE_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return len(left)

    def leftovers(self) -> list[str]:
        """Files under temporary names, and Ray's folders."""
        found = [path for path in self.workspace.rglob("*") if path.name.startswith(".tmp") or path.suffix == ".tmp"]
        return [path.name for path in (*found, *self.temporary.glob("saerl-*"))]

    def read(self) -> int:
        """Prompts that went through the reader, in all runs."""
        return sum(map(int, self.counts.read_text().split())) if self.counts.exists() else 0


def world(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """A config with every stage in it, small enough to finish in seconds; its prompts are written to `folder`."""
    with gzip.open(resolve("saerl:toy/train.jsonl.gz", folder), "rt") as file:
        lines = file.readlines()
    (folder / "prompts.jsonl").write_text("".join(lines[:ROWS]))
    (folder / "heldout.jsonl").write_text("".join(lines[-30:]))
    columns = {"id": "id", "prompt": "problem", "answer": "answer"}
    tree: dict[str, Any] = {
        "name": "faults", "workspace": "out",
        "data": {"path": "prompts.jsonl", "name": "toy", "columns": columns,
                 "heldout": {"path": "heldout.jsonl", "columns": columns}},
        "features": {"model": "saerl:toy/lm", "sae": "saerl:toy/sae", "shard_rows": SHARD_ROWS, "device": "cpu"},
        "clusters": {"k": 4, "dims": 64}, "labels": {"count": 40, "samples": 2},
        "quality": {"count": 80, "suspect_answers": True}, "schedule": {"batch_size": 8},
        "policy": {"model": "saerl:toy/lm", "max_prompt_tokens": 128, "max_response_tokens": 56},
        "train": {"rollouts": 4, "learning_rate": 1e-3, "micro_batch_size": 32, "save_every": 2, "test_every": 100},
        "evaluation": {"prompts": 16, "samples": 2},
    }
    for section, fields in changes.items():
        tree[section] = {**tree[section], **fields}
    return tree


def digest(folder: Path) -> str:
    """Hash over names and bytes of a manifest's files."""
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def undisturbed(folder: Path, api: str) -> Undisturbed:
    """A curation that nobody kills."""
    case, began = Case(folder, api), time.monotonic()
    process = case.start("curate", str(case.config))
    while not case.stages_done() and process.poll() is None:
        time.sleep(0.02)
    start = time.monotonic() - began
    outcome = json.loads(process.communicate()[0])
    stages = {entry["stage"]: max(entry["seconds"], _BLINK) for entry in outcome["stages"]}
    return Undisturbed(digest(Path(outcome["manifest"])), case.read(), {"start": start, **stages})


def moments(count: int, stages: Sequence[str], rng: random.Random) -> list[Moment]:
    """Moments in all stages in turn, at a random place within each; the first one, over in a blink, is the start's."""
    aims = [stage for stage in stages if stage != "fingerprint"]
    return [Moment(number, aims[number % len(aims)], rng.random(), tree=rng.random() < 2 / 3,
                   ephemeral=number % 5 == 4) for number in range(count)]


def kill_curation(root: Path, moment: Moment, usual: Undisturbed, api: str) -> Aftermath:
    """Kill a curation at a moment, then run it again."""
    names = list(usual.stages)
    before = len(names[: names.index(moment.stage)][1:])
    attempt = 0
    while True:
        case = Case(root / f"{moment.number:02d}-{attempt}", None if moment.ephemeral else api)
        process = case.start("curate", str(case.config))
        while len(case.stages_done()) < before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moment.share * usual.stages[moment.stage] / 2**attempt)
        if process.poll() is None:
            break
        process.communicate()
        assert process.returncode == 0, case.log.read_text()
        attempt += 1  # it was over by then: once more, and sooner
    done = len(case.stages_done())
    orphans = case.kill(process, tree=moment.tree)
    killed_in = names[done + 1] if done and done + 1 < len(names) else "start" if not done else "after manifest"
    began = time.monotonic()
    outcome = case.finish("curate", str(case.config))
    return Aftermath(
        moment.number, moment.stage, killed_in, moment.tree, moment.ephemeral,
        same_bytes=digest(Path(outcome["manifest"])) == usual.digest, read_again=case.read() - usual.read,
        leftovers=case.leftovers(), orphans=orphans + case.orphans(), seconds=round(time.monotonic() - began, 1))


def kill_training(case: Case, manifest: Path, moment: Moment, start_seconds: float, step_seconds: float) -> Aftermath:
    """Kill a training at a moment, then run it again. Each has a seed, and so a run folder, of its own."""
    arguments = ("train", str(manifest), str(case.config), "--set", f"train.seed={moment.number}")
    known = set(case.workspace.glob("runs/faults-*"))
    before, read = digest(manifest), case.read()

    def steps() -> int:
        new = set(case.workspace.glob("runs/faults-*")) - known
        return max((len(consumed_batches(run)) for run in new), default=0)

    process = case.start(*arguments)
    step = int(moment.stage.removeprefix("step ")) if moment.stage.startswith("step ") else 0
    while steps() < step and process.poll() is None:
        time.sleep(0.05)
    time.sleep(moment.share * (step_seconds if step else start_seconds))
    reached = steps()
    orphans = case.kill(process, tree=moment.tree)
    began = time.monotonic()
    outcome = case.finish(*arguments)
    run = Path(outcome["train"]["run"])
    verify_manifest(manifest)
    return Aftermath(
        moment.number, moment.stage, f"training, {reached} steps taken", moment.tree, moment.ephemeral,
        same_bytes=consumed_batches(run) == wanted_batches(manifest) and digest(manifest) == before,
        read_again=case.read() - read, leftovers=case.leftovers(), orphans=orphans + case.orphans(),
        seconds=round(time.monotonic() - began, 1))


def kill_trainings(folder: Path, count: int, seed: int, api: str, tell: Callable[[str], None]) -> list[Aftermath]:
    """Kill trainings one after the other, all on one manifest: at the start, and after random steps."""
    if not count:
        return []
    rng = random.Random(seed + 1)
    case = Case(folder, api, schedule={"batch_size": 8, "steps": STEPS}, labels={"source": "none"},
                quality={"method": "none"})
    manifest = Path(case.finish("curate", str(case.config))["manifest"])
    began = time.monotonic()
    case.finish("train", str(manifest), str(case.config))
    seconds = time.monotonic() - began
    found = []
    for number in range(count):
        step = 0 if number % 3 == 0 else rng.randint(1, STEPS)
        moment = Moment(100 + number, f"step {step}" if step else "start", rng.random(), tree=rng.random() < 2 / 3)
        found.append(kill_training(case, manifest, moment, 0.7 * seconds, 0.05 * seconds))
        tell(_line(found[-1]))
    return found


def wanted_batches(manifest: Path) -> dict[int, list[str]]:
    """The batch that each step is to take."""
    extra = pl.read_parquet(manifest / "train.parquet")["extra_info"].struct.unnest()
    return {batch + 1: ids for batch, ids in extra.group_by("batch", maintain_order=True).agg("id").iter_rows()}


@contextmanager
def server(folder: Path, port: int = 0) -> Iterator[str]:
    """A Prefect server on loopback while the context lasts; gives its API's address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment.pop("PREFECT_API_URL", None)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1",
                                    "--port", str(port)], stdout=log, stderr=log, env=environment)
    try:
        for _ in range(600):
            with suppress(httpx.HTTPError):
                if httpx.get(f"{api}/health", timeout=2).is_success:
                    break
            time.sleep(0.2)
        yield api
    finally:
        process.terminate()
        process.wait(timeout=60)


def _line(found: Aftermath) -> str:
    how = ("tree" if found.tree else "command alone") + (", own server" if found.ephemeral else "")
    verdict = "sound" if found.sound() else f"BROKEN: {asdict(found)}"
    return f"{found.number:>4}  {found.killed_in:<26} {how:<26} {found.read_again:>3} read again  {verdict}"


def _table(found: list[Aftermath]) -> Iterator[str]:
    yield f"{'killed in':<26}{'kills':>6}{'sound':>7}{'most read again':>17}{'leftovers':>11}{'orphans':>9}"
    for stage in dict.fromkeys(entry.killed_in for entry in sorted(found, key=lambda entry: entry.number)):
        these = [entry for entry in found if entry.killed_in == stage]
        yield (f"{stage:<26}{len(these):>6}{sum(entry.sound() for entry in these):>7}"
               f"{max(entry.read_again for entry in these):>17}{sum(len(entry.leftovers) for entry in these):>11}"
               f"{sum(entry.orphans for entry in these):>9}")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="kills in all")
    parser.add_argument("--training", type=int, default=6, help="of them in a training with real verl")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=2, help="curations at a time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sf-") as folder, server(Path(folder, "server")) as api:
        usual = undisturbed(Path(folder, "0"), api)
        chosen = moments(asked.moments - asked.training, list(usual.stages), random.Random(asked.seed))

        def kill(moment: Moment) -> Aftermath:
            found = kill_curation(Path(folder), moment, usual, api)
            _tell(_line(found))
            return found

        with ThreadPoolExecutor(asked.workers + 1) as pool:
            trainings = pool.submit(kill_trainings, Path(folder, "t"), asked.training, asked.seed, api, _tell)
            found = [*pool.map(kill, chosen), *trainings.result()]
    for line in _table(found):
        sys.stdout.write(line + "\n")
    sound = sum(entry.sound() for entry in found)
    sys.stdout.write(f"{sound} of {len(found)} sound; undisturbed: {usual.read} prompts read\n")
    sys.stdout.write(json.dumps({"moments": len(found), "sound": sound, "shard_rows": SHARD_ROWS,
                                 "kills": [asdict(entry) for entry in found]}) + "\n")
    sys.exit(sound != len(found))


if __name__ == "__main__":
    main()
