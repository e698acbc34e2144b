"""What a killed command leaves behind: nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import psutil

from flows import guard

COMMAND = """
    import subprocess, sys, time
    from flows.guard import guard

    print(guard(), flush=True)
    sleep = "import time; time.sleep(300)"
    fork = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], env={{}})"
    subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + sleep])
    subprocess.Popen([sys.executable, "-c", fork + ";" + sleep])
    print("started", flush=True)
    time.sleep(300)
"""


def carriers(token: str) -> list[psutil.Process]:
    return guard._carriers(token)


def start() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(COMMAND)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    token = process.stdout.readline().strip()
    assert process.stdout.readline() == "started\n"
    return process, token


def wait_until_gone(processes: list[psutil.Process], seconds: float = 20) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=seconds)[1]


def test_killing_a_command_ends_its_children_the_stubborn_and_the_nameless_too() -> None:
    process, token = start()
    deadline = time.monotonic() + 60
    while len(children := carriers(token)) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) == 4  # the last has no token, but a parent that has
    process.kill()
    process.wait()
    assert wait_until_gone(children) == []


def test_a_command_that_ends_by_itself_takes_its_watchdog_with_it() -> None:
    code = "import flows.guard as g; g.guard(); print(g._watchdogs[0].pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_other_commands_are_left_alone() -> None:
    mine, other = start(), start()
    mine[0].kill()
    mine[0].wait()
    time.sleep(1)
    assert other[0].poll() is None
    assert carriers(other[1])
    guard.end_all(other[1])
    other[0].kill()
    other[0].wait()
    assert wait_until_gone(carriers(other[1])) == []
