"""Locks that die with their holder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from saerl_core import locks

HOLDER = """
import sys, time
from pathlib import Path
from saerl_core import locks
with {how}:
    print("held", flush=True)
    time.sleep(60)
"""


def holder(how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER.format(how=how)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_keeps_other_processes_out_and_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    process = holder(f"locks.exclusive(Path({str(path)!r}))")
    with pytest.raises(locks.BusyError), locks.exclusive(path, wait=False):
        pass
    process.kill()
    process.wait()
    with locks.exclusive(path, wait=False):
        pass


def test_runs_share_a_workspace_and_keep_its_remover_out(tmp_path: Path) -> None:
    process = holder(f"locks.in_use(Path({str(tmp_path)!r}))")
    with locks.in_use(tmp_path):  # does not wait
        pass
    with pytest.raises(locks.BusyError), locks.exclusive(tmp_path / locks.IN_USE, wait=False):
        pass
    process.kill()
    process.wait()
    with locks.exclusive(tmp_path / locks.IN_USE, wait=False):
        pass
