"""The fork server: a worker is what the interpreter would have become, and ends with whoever asked for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import saerl_fork

FORK = saerl_fork.__file__

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fork server is for Linux")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server without the slow imports, whose driver waits for the end of its input."""
    code = """
        import sys
        import saerl_fork
        run = saerl_fork.serve_in_fork(sys.argv[1])
        run() if run else (print(flush=True), sys.stdin.read())
    """
    socket_path = str(tmp_path / "fork")
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), socket_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(FORK).parent)},
    )
    assert driver.stdout is not None
    driver.stdout.readline()
    yield socket_path
    driver.kill()
    driver.wait()


def _worker(server: str, script: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", FORK, "worker", server, str(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _script(folder: Path, code: str) -> Path:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(code))
    return path


def test_a_worker_has_the_arguments_environment_folder_and_output_of_its_client(server: str, tmp_path: Path) -> None:
    script = _script(tmp_path, "import os, sys; print(__name__, sys.argv[1:], os.getcwd(), os.environ.get('HOME'))")
    worker = _worker(server, script, "a b", "--c", cwd=tmp_path, env={"PATH": "/bin"})
    output, _ = worker.communicate(timeout=20)
    assert output == f"__main__ ['a b', '--c'] {tmp_path} None\n"
    assert worker.returncode == 0


def test_an_exit_code_comes_back(server: str, tmp_path: Path) -> None:
    worker = _worker(server, _script(tmp_path, "import sys; sys.exit(7)"))
    assert worker.wait(20) == 7


def test_workers_do_not_share_their_luck(server: str, tmp_path: Path) -> None:
    script = _script(tmp_path, "import random, numpy; print(random.random(), numpy.random.random())")
    drawn = {_worker(server, script).communicate(timeout=20)[0] for _ in range(3)}
    assert len(drawn) == 3


def test_a_worker_ends_with_its_client(server: str, tmp_path: Path) -> None:
    worker = _worker(server, _script(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(600)"))
    assert worker.stdout is not None
    fork = psutil.Process(int(worker.stdout.readline()))
    worker.kill()
    worker.wait()
    _wait_until_gone(fork)


def test_a_client_that_is_terminated_passes_it_on(server: str, tmp_path: Path) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        print(flush=True)
        time.sleep(600)
    """
    worker = _worker(server, _script(tmp_path, code))
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.terminate()
    assert worker.wait(20) == 3


def _wait_until_gone(process: psutil.Process, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{process} lives on"
            time.sleep(0.05)
