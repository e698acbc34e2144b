"""Ending exactly the processes of one attempt, and never one that merely got the same pid."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
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
    assert [member.pid for member in process.members(run_dir, record)] == [child.pid]
    assert process.reap(run_dir) == 1
    assert not psutil.pid_exists(child.pid)
    assert not (run_dir / process.RECORD).exists()
    assert process.reap(run_dir) == 0


@pytest.mark.parametrize("planted", [
    {"ray_dir": "{elsewhere}"}, {"ray_dir": ""}, {"ray_dir": "saerl-12345678/../x"}, {"token": None}, {"token": ""},
    {"token": 7}])
def test_a_record_that_names_what_no_job_has_is_not_believed(run_dir: Path, planted: dict[str, object]) -> None:
    elsewhere = run_dir / "precious"
    elsewhere.mkdir()
    named = {name: str(elsewhere) if value == "{elsewhere}" else value for name, value in planted.items()}
    (run_dir / process.RECORD).write_text(json.dumps({**asdict(process.new_record()), **named}))
    assert process.reap(run_dir) == 0
    assert elsewhere.is_dir()


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


def test_rays_agents_are_known_by_title_and_folder(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """They overwrite their command line and environment, and outlive a driver that is killed."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code = "import time; print(flush=True); time.sleep(600)"
    agents = [
        psutil.Popen(["ray::DashboardAgent", "-c", code], executable=sys.executable, cwd=cwd, stdout=subprocess.PIPE)
        for cwd in (run_dir, elsewhere)
    ]
    try:
        for agent in agents:
            agent.stdout.readline()
        assert process.end(run_dir, process.new_record()) == 1
        assert [agent.is_running() and agent.status() != psutil.STATUS_ZOMBIE for agent in agents] == [False, True]
    finally:
        for agent in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.kill()
            agent.wait()


def test_a_broken_record_harms_nobody(run_dir: Path) -> None:
    (run_dir / process.RECORD).write_text("{")
    assert process.reap(run_dir) == 0
