"""`saerl serve` in a process of its own, for benchmarks that watch it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

T = TypeVar("T")


@contextmanager
def served(config: Path) -> Iterator[httpx.Client]:
    """Serve a config while the context lasts; gives a client of the server's API. Its log lies beside the config."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    log = config.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "flows.cli", "serve", str(config)], stdout=file, stderr=file,
                                   env=environment)
    try:
        def address() -> str | None:
            assert process.poll() is None, log.read_text()
            lines = log.read_text().splitlines()
            return next((line.split()[-1] for line in lines if line.startswith("serving ")), None)

        with httpx.Client(base_url=until(address, 300) + "/api", timeout=30) as api:
            yield api
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def switch_off(api: httpx.Client, verb: str) -> None:
    """Disable the automations whose name begins with a word: `train`."""
    for automation in api.post("/automations/filter", json={}).raise_for_status().json():
        if automation["name"].startswith(verb):
            api.patch(f"/automations/{automation['id']}", json={"enabled": False}).raise_for_status()


def until(ask: Callable[[], T | None], seconds: float) -> T:
    """Ask until there is an answer.

    Raises:
        TimeoutError: there was none in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = ask()
        if answer is not None:
            return answer
        time.sleep(0.1)
    raise TimeoutError(f"not within {seconds:.0f} s")
