"""Locks that die with their holder."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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


def test_who_waits_is_next_though_the_holder_comes_back_at_once(tmp_path: Path) -> None:
    path, never, turns, one_at_a_time = tmp_path / ".lock", threading.Event(), [], threading.Lock()

    def take(who: str, times: int) -> None:
        for _ in range(times):
            with one_at_a_time if who == "many" else nullcontext(), locks.exclusive(path, given_up=never):
                turns.append(who)
                time.sleep(0.1)

    with ThreadPoolExecutor(3) as pool:  # a run with two shards under way, and another that needs one
        runs = [pool.submit(take, "many", 10), pool.submit(take, "many", 10)]
        time.sleep(0.15)
        runs.append(pool.submit(take, "one", 1))
        for run in runs:
            run.result()
    assert turns.index("one") < 5


def test_who_gives_up_waits_no_longer(tmp_path: Path) -> None:
    given_up = threading.Event()
    with locks.exclusive(tmp_path / ".lock"), ThreadPoolExecutor(1) as pool:
        def wait() -> None:
            with locks.exclusive(tmp_path / ".lock", given_up=given_up):
                pass

        waiting = pool.submit(wait)
        given_up.set()
        with pytest.raises(locks.BusyError):
            waiting.result(timeout=60)


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
