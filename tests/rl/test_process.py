"""Ending exactly the processes of one attempt, and never one that merely got the same pid."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from saerl_core.rl import process

_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path


def test_a_child_gets_a_session_of_its_own_and_writes_to_the_log(run_dir: Path) -> None:
    code = "import os, sys; sys.stderr.write(f'{os.getsid(0)} {sys.stdin.read()!r}')"
    child, record = process.start(
        process.new_record(), [sys.executable, "-c", code], dict(os.environ), run_dir, run_dir / "log"
    )
    child.wait()
    process.end(run_dir, record)
    assert (run_dir / "log").read_text() == f"{child.pid} ''"


def test_reaping_ends_what_an_earlier_process_started(run_dir: Path) -> None:
    child, record = process.start(process.new_record(), _SLEEP, dict(os.environ), run_dir, run_dir / "log")
    assert [member.pid for member in process.members(record)] == [child.pid]
    assert process.reap(run_dir) == 1
    assert not psutil.pid_exists(child.pid)
    assert not (run_dir / process.RECORD).exists()
    assert process.reap(run_dir) == 0


def test_a_recycled_pid_is_never_killed(run_dir: Path) -> None:
    bystander = psutil.Popen(_SLEEP)
    try:
        stale = replace(process.new_record(), pid=bystander.pid, created=bystander.create_time() - 100)
        (run_dir / process.RECORD).write_text(json.dumps(asdict(stale)))
        assert process.reap(run_dir) == 0
        assert bystander.is_running()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_record_without_a_pid_still_finds_its_child(run_dir: Path) -> None:
    """The launcher may be killed between starting a child and writing down its pid."""
    child, record = process.start(process.new_record(), _SLEEP, dict(os.environ), run_dir, run_dir / "log")
    (run_dir / process.RECORD).write_text(json.dumps(asdict(replace(record, pid=None, created=None))))
    assert process.reap(run_dir) == 1
    child.wait(5)


def test_a_broken_record_harms_nobody(run_dir: Path) -> None:
    (run_dir / process.RECORD).write_text("{")
    assert process.reap(run_dir) == 0
