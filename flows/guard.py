"""What a command starts does not outlive it, not even after SIGKILL.

Prefect's ephemeral server, a worker's flow runs and verl's process tree are processes of their own; when the command
that started them is killed, nobody tells them. So a watchdog waits at the other end of a pipe, which the kernel closes
when the command ends. It then ends whatever carries the command's token in its environment, and all that descends from
it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time

import psutil

TOKEN = "SAERL_COMMAND_TOKEN"
_POLITE_SECONDS = 5.0
_END_SECONDS = 20.0
_watchdogs: list[subprocess.Popen[bytes]] = []


def guard() -> str:
    """Have all that this process starts from now on end with it. Returns the token in their environment."""
    environment = {name: value for name, value in os.environ.items() if name != TOKEN}
    token = secrets.token_hex(16)
    os.environ[TOKEN] = token
    _watchdogs.append(subprocess.Popen([sys.executable, __file__, token], stdin=subprocess.PIPE,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
                                       start_new_session=True))
    return token


def end_all(token: str) -> None:
    """End all processes that carry a token, but for this one: asked first, then killed."""
    started = time.monotonic()
    while (found := _carriers(token)) and time.monotonic() - started < _END_SECONDS:
        polite = time.monotonic() - started < _POLITE_SECONDS
        for process in found:
            with contextlib.suppress(psutil.Error):
                if polite:
                    process.terminate()
                else:
                    process.kill()
        psutil.wait_procs(found, timeout=_POLITE_SECONDS if polite else 1)


def _carriers(token: str) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN) == token and process.pid != os.getpid():
                found[process.pid] = process
                found.update((child.pid, child) for child in process.children(recursive=True))
    return [process for process in found.values() if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _watch(token: str) -> None:
    sys.stdin.buffer.read()  # returns when the guarded process has ended
    end_all(token)


if __name__ == "__main__":
    _watch(sys.argv[1])
