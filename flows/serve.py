"""`saerl serve`: a Prefect server, a worker, a watcher and the deployments of a config, with one command.

Everything listens on 127.0.0.1 only, and keeps its database and logs in the workspace, under `server/`. All of it stops
together; a guard (`flows.guard`) sees to it that nothing is left even after SIGKILL.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import httpx
import psutil
import yaml

from flows import guard
from flows.deploy import POOL, deploy
from saerl_core import locks
from saerl_core.artifact import write_file
from saerl_core.config import RunConfig
from saerl_core.errors import ConfigError, SaerlError

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
FOLDER = "server"
_START_SECONDS = 180.0
_POLL_SECONDS = 0.5


class StoppedError(SaerlError):
    """A part of the service ended by itself."""


def serve(config: RunConfig, *, port: int | None = None, ready: Callable[[str], None] | None = None,
          tell: Callable[[str], None] | None = None) -> None:
    """Serve a config until SIGINT or SIGTERM.

    Args:
        config: What the deployments run, and what the watcher watches.
        port: The server's port. Default: Prefect's 4200 if it is free, else a free one.
        ready: Called with the UI's address when everything runs.
        tell: Called with a line before each step.

    Raises:
        ConfigError: the port is taken, or this workspace is served already.
        StoppedError: a part ended by itself; names its log.
    """
    folder = config.root / FOLDER
    port = _choose_port(port)
    tell = tell or (lambda _: None)
    try:
        with locks.exclusive(folder / ".lock", wait=False), _stopped_by_signals():
            token = guard.guard()
            try:
                _serve(config, folder, port, ready, tell)
            finally:
                tell("stopping")
                guard.end_all(token)
    except locks.BusyError as error:
        raise ConfigError(f"{config.root}: `saerl serve` is running for this workspace already") from error


def _serve(config: RunConfig, folder: Path, port: int, ready: Callable[[str], None] | None,
           tell: Callable[[str], None]) -> None:
    os.environ.update(server_environment(folder, port))
    saved = folder / "config.yaml"
    write_file(saved, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    parts: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("ab") as log:
            parts[name] = subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=log,
                                           stderr=subprocess.STDOUT, start_new_session=True)

    def check() -> None:
        for name, part in parts.items():
            if part.poll() is not None:
                raise StoppedError(f"the {name} ended with exit code {part.returncode}; see {folder / name}.log")

    tell("starting the server")
    start("server", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    _wait_until_healthy(f"http://{HOST}:{port}/api/health", check, lambda: _listens(parts["server"].pid, port))
    tell("deploying")
    deploy(config)
    revive_runs()
    tell("starting worker and watcher")
    start("worker", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "serve")
    start("watcher", "flows.cli", "watch", str(saved))
    if ready is not None:
        ready(f"http://{HOST}:{port}")
    while True:
        time.sleep(_POLL_SECONDS)
        check()


def server_environment(folder: Path, port: int) -> dict[str, str]:
    """Settings of a Prefect server of one's own, on loopback, and of all that talk to it."""
    return {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
    }


def revive_runs() -> None:
    """Schedule again what ran when this server was last stopped: every stage goes on where it was interrupted.

    Nobody else can be running it, for the server is ours and so were its workers. Left as they are, such runs would
    stay `Running` for ever and hold their deployment's only slot.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed, Scheduled

    interrupted = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=interrupted):
            again = run.deployment_id is not None and run.state is not None and not run.state.is_cancelling()
            state = Scheduled(message="interrupted when the server was stopped") if again else \
                Crashed(message="the server was stopped")
            client.set_flow_run_state(run.id, state, force=True)


def _choose_port(asked: int | None) -> int:
    """A port that is free now.

    Raises:
        ConfigError: the port that was asked for is taken.
    """
    for port in (asked,) if asked is not None else (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise ConfigError(f"--port {asked} is taken on {HOST}: choose another, or leave it out")


def _listens(process: int, port: int) -> bool:
    """Whether it is this process, or a child of it, that listens: another service may have come first."""
    with suppress(psutil.Error):
        server = psutil.Process(process)
        return any(connection.laddr.port == port for one in (server, *server.children(recursive=True))
                   for connection in one.net_connections("tcp") if connection.status == psutil.CONN_LISTEN)
    return False


def _wait_until_healthy(url: str, check: Callable[[], None], ours: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        check()
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).is_success and ours():
                return
        time.sleep(0.2)
    raise StoppedError(f"the server did not answer at {url} within {_START_SECONDS:.0f} s")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, as SIGINT is already, and swallow that one."""
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
