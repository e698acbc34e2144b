"""One child process and everything it spawns: started apart, found again after a crash, ended to the last process.

A verl job is a driver, Ray's servers, and workers that are re-parented and renamed. What ties them together is a random
token in their environment and the Ray folder on their command lines; both are written to `process.json` before the
child starts. So a later process can end exactly these and never one that merely got the same pid.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from saerl_core.artifact import write_file

RECORD = "process.json"
TOKEN_VARIABLE = "SAERL_JOB_TOKEN"

_TOKEN = re.compile(r"[0-9a-f]{32}")
_RAY_DIR = re.compile(r"saerl-[0-9a-f]{8}")
_LONGEST_RAY_DIR = 40  # Ray's socket names below it come to about 65 characters, and 107 is a unix socket's limit
_END_SECONDS = 20.0


@dataclass(frozen=True)
class ProcessRecord:
    """How to recognise the processes of one attempt."""

    token: str
    ray_dir: str
    pid: int | None = None
    created: float | None = None
    """Start time of `pid` (seconds since the epoch): pids are used again, pairs of both are not."""


def new_record() -> ProcessRecord:
    """A record with a token and the name of a Ray folder of its own; no folder and no process yet."""
    base = tempfile.gettempdir()
    if len(base) > _LONGEST_RAY_DIR - len("/saerl-12345678") and Path("/tmp").is_dir():
        base = "/tmp"
    return ProcessRecord(token=secrets.token_hex(16), ray_dir=f"{base}/saerl-{secrets.token_hex(4)}")


def start(
    record: ProcessRecord, command: Sequence[str], environment: dict[str, str], run_dir: Path, log: Path
) -> tuple[subprocess.Popen[bytes], ProcessRecord]:
    """Start a child in a session of its own, with its output appended to a file and no input.

    The record is on disk before the Ray folder and the child exist, and with its pid afterwards.
    """
    _write(run_dir, record)
    Path(record.ray_dir).mkdir(mode=0o700)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            cwd=run_dir,
            env={**environment, TOKEN_VARIABLE: record.token},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with contextlib.suppress(psutil.NoSuchProcess):
        record = replace(record, pid=child.pid, created=psutil.Process(child.pid).create_time())
        _write(run_dir, record)
    return child, record


def reap(run_dir: Path) -> int:
    """End what an earlier attempt in this folder left running. Returns the number of processes ended."""
    record = _read(run_dir)
    return 0 if record is None else end(run_dir, record)


def end(run_dir: Path, record: ProcessRecord) -> int:
    """Kill all processes of an attempt and remove its traces. Returns their number.

    There is nothing that they would have to save: checkpoints are written before they are announced.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + _END_SECONDS
    while (found := members(run_dir, record)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                ended.add(process.pid)
        psutil.wait_procs(found, timeout=3)
    shutil.rmtree(record.ray_dir, ignore_errors=True)
    (run_dir / RECORD).unlink(missing_ok=True)
    return len(ended)


def members(run_dir: Path, record: ProcessRecord) -> list[psutil.Process]:
    """Living processes of an attempt: its child, all that carry its token or Ray folder, and their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and _belongs(process, record, run_dir):
                found[process.pid] = process
                found.update((child.pid, child) for child in process.children(recursive=True))
    return [process for process in found.values() if process.is_running()]


def _belongs(process: psutil.Process, record: ProcessRecord, run_dir: Path) -> bool:
    if process.pid == record.pid and process.create_time() == record.created:
        return True
    command = process.cmdline()
    if any(record.ray_dir in argument for argument in command):
        return True
    if process.environ().get(TOKEN_VARIABLE) == record.token:
        return True
    # Ray's agents write their title over command line and environment; their folder is still the run's.
    return bool(command) and command[0].startswith("ray::") and process.cwd() == str(run_dir)


def _write(run_dir: Path, record: ProcessRecord) -> None:
    write_file(run_dir / RECORD, json.dumps(asdict(record)).encode())


def _read(run_dir: Path) -> ProcessRecord | None:
    """The record of an earlier attempt. One that names anything but a job's own is not believed: it would be ended."""
    try:
        record = ProcessRecord(**json.loads((run_dir / RECORD).read_text(encoding="utf-8")))
        own = _TOKEN.fullmatch(record.token) and _RAY_DIR.fullmatch(Path(record.ray_dir).name)
    except (OSError, ValueError, TypeError):
        return None
    return record if own else None
