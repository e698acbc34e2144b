"""Start verl's processes by forking one that has done the slow imports.

verl on one machine is some ten processes, and each of them spends its first seconds, one after another, on the same
imports (torch, transformers and what they need). Here the driver imports once and forks a server; Ray, told by its own
setting `runtime_env.py_executable`, starts its workers with this file in place of the interpreter, and the server forks
them ready-made. The first step comes after 22 s instead of 60 on two cores, and the copies share memory. For the CPU
engine only: a process that uses a GPU must not be forked.

    python saerl_fork.py driver SOCKET OVERRIDE...       import, fork the server, become verl.trainer.main_ppo
    python saerl_fork.py worker SOCKET SCRIPT ARG...     what Ray runs: have SCRIPT run in a fork, and wait for its end
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PRELOAD = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.parallel",
    "tensordict",
    "torchdata.stateful_dataloader",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.processing_utils",
    "accelerate",
    "aiohttp",
    "datasets",
    "fastapi",
    "hydra",
    "pandas",
    "peft",
)
"""What verl imports, but not verl itself, nor Ray: Ray reads its environment when it is imported, and each worker has
its own. One that is missing is skipped: it only costs time."""
_LENGTH = struct.Struct("!I")
_LOOK_SECONDS = 0.1


def drive(socket_path: str, overrides: list[str]) -> None:
    """The job's first process: preload, leave a server behind, and run verl's trainer."""
    for name in _PRELOAD:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    run_script = serve_in_fork(socket_path)
    if run_script is not None:
        run_script()
        return
    import runpy

    sys.argv = ["main_ppo", *overrides]
    runpy.run_module("verl.trainer.main_ppo", run_name="__main__", alter_sys=True)


def serve_in_fork(socket_path: str) -> Callable[[], None] | None:
    """Fork a server that answers on a socket. None in the caller; in each worker, what it has to run."""
    import gc

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(socket_path)
    listener.listen(64)
    gc.freeze()  # what is shared stays shared: the collector does not touch it
    driver = os.getpid()
    if os.fork() != 0:
        listener.close()
        return None
    return _serve(listener, driver)


def _serve(listener: socket.socket, driver: int) -> Callable[[], None]:
    """Fork a worker per connection, for as long as the driver lives. Returns in the workers only."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    clients: dict[int, socket.socket] = {}
    while os.getppid() == driver:
        for key, _ in selector.select(_LOOK_SECONDS):
            if key.fileobj is not listener:  # a client writes nothing more: it has gone
                _end_worker_of(key.data, clients, selector)
                continue
            client, _address = listener.accept()
            request, files = _receive(client)
            pid = os.fork()
            if pid == 0:
                selector.close()
                for open_socket in (listener, client, *clients.values()):
                    open_socket.close()
                return lambda: _become(request, files)
            for file in files:
                os.close(file)
            clients[pid] = client
            selector.register(client, selectors.EVENT_READ, pid)
            _send(client, pid)
        _report_ended(clients, selector)
    os._exit(0)


def _report_ended(clients: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        client = clients.pop(pid, None)
        if client is not None:
            selector.unregister(client)
            _send(client, os.waitstatus_to_exitcode(status) & 0xFF)
            client.close()


def _end_worker_of(pid: int, clients: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    client = clients.pop(pid)
    selector.unregister(client)
    client.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _send(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # a client that has gone is noticed by its closed socket
        client.sendall(_LENGTH.pack(number))


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Turn this fork into what the interpreter would have become: files, environment, arguments, script."""
    import random
    import runpy

    import numpy as np

    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()  # else all workers would draw the same numbers
    np.random.seed()
    script, *arguments = request["command"]
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def request_worker(socket_path: str, command: list[str]) -> int:
    """Have a script run in a fork of the server, with this process's files and environment; wait for its exit code."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(socket_path)
    message = json.dumps({"command": command, "cwd": str(Path.cwd()), "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(message))], [0, 1, 2])
    connection.sendall(message)
    (pid,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    (code,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    return code


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, files, _flags, _address = socket.recv_fds(client, _LENGTH.size, 3)
    return json.loads(_read(client, _LENGTH.unpack(header)[0])), files


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the fork server has gone")
        data += part
    return data


if __name__ == "__main__":
    role, path, *rest = sys.argv[1:]
    if role == "driver":
        drive(path, rest)
    else:
        sys.exit(request_worker(path, rest))
