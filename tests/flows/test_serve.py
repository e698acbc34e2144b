"""`saerl serve` and `saerl curate` as processes: what runs, where it listens, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType

from benchmarks import cancelling
from benchmarks.served import until
from flows import serve
from saerl_core.errors import ConfigError
from tests.flows.conftest import make_config, toy_rows, write_rows
from tests.outside import addresses_heard, words
from tests.rl import stub_trainer


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen([sys.executable, "-m", "flows.cli", *arguments], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=environment, cwd=folder)


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving "):
            return line.split()[-1]
    raise AssertionError(process.communicate()[1])


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def has_features(folder: Path, process: subprocess.Popen[str]) -> bool | None:
    assert process.poll() is None, process.communicate()[1]
    return any(folder.glob("saerl-out/features/*/*.safetensors")) or None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_rows(tmp_path / "heldout.jsonl", toy_rows(20, start=1000))
    data = make_config(tmp_path).data.model_dump(mode="json")
    data["heldout"] = {"path": "heldout.jsonl", "columns": {"prompt": "problem"}}
    made = make_config(tmp_path, data=data, labels={"count": 100, "samples": 8})
    path = tmp_path / "served.yaml"
    path.write_text(yaml.safe_dump(made.model_copy(update={"name": "served"}).model_dump(mode="json")))
    return path


def test_a_port_that_is_taken_is_refused_and_the_default_gives_way() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind((serve.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} is taken"):
            serve._choose_port(port)
    assert serve._choose_port(None) > 0


@pytest.mark.e2e
def test_a_killed_curation_leaves_no_server_behind(config: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "curate", str(config))
    until(lambda: has_features(tmp_path, process), 300)
    children = family(process)
    assert any("uvicorn" in part for part in words(children))
    process.kill()
    process.wait()
    assert psutil.wait_procs(children, timeout=30)[1] == []


@pytest.mark.e2e
def test_serve_listens_on_loopback_runs_deployments_revives_them_and_leaves_nothing(config: Path,
                                                                                   tmp_path: Path) -> None:
    process = start(tmp_path, "serve", str(config))
    root = address(process)
    members = family(process)
    assert words(members) >= {"server", "worker", "watch"}
    assert addresses_heard(members) == {"127.0.0.1"}

    second = start(tmp_path, "serve", str(config))
    assert "running for this workspace already" in second.communicate(timeout=120)[1]
    assert second.returncode == 2

    with SyncPrefectClient(f"{root}/api") as api:  # not bare httpx: a busy SQLite answers 503, to be asked again
        run = api.create_flow_run_from_deployment(api.read_deployment_by_name("curate/served").id)
        until(lambda: has_features(tmp_path, process), 300)
    members = family(process)
    assert "prefect.engine" in words(members)
    assert addresses_heard(members) == {"127.0.0.1"}  # the curation's, too
    process.kill()
    process.wait()
    assert psutil.wait_procs(members, timeout=30)[1] == []

    process = start(tmp_path, "serve", str(config))
    with SyncPrefectClient(f"{address(process)}/api") as api:
        def ended() -> FlowRun | None:
            found = api.read_flow_run(run.id)
            return found if found.end_time else None

        revived = until(ended, 300)
    assert revived.state_type == StateType.COMPLETED
    assert revived.run_count == 2
    members = family(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert psutil.wait_procs(members, timeout=30)[1] == []
    time.sleep(1)
    assert not [child for child in psutil.process_iter(["cmdline"])
                if any(str(tmp_path) in part for part in child.info["cmdline"] or [])]


def test_it_is_told_whether_a_process_or_another_one_listens_on_a_port() -> None:
    with socket.socket() as server:
        server.bind((serve.HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        assert serve._listens(os.getpid(), port)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            assert not serve._listens(other.pid, port)
            other.kill()


@pytest.mark.e2e
def test_a_training_that_is_cancelled_in_the_ui_ends_with_all_its_processes_and_a_new_run_resumes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("verl", reason="verl, which checks every job, is not installed (pip install 'saerl[verl]')")
    stub = tmp_path / "python"
    stub.write_text(f'''#!/bin/sh
case "$1" in
  *saerl_fork.py) exec {sys.executable} {stub_trainer.__file__} "$@";;
  *) exec {sys.executable} "$@";;
esac
''')
    stub.chmod(0o755)
    monkeypatch.setenv("STUB_SLEEP", "1.5")
    monkeypatch.setenv("STUB_CHILD", "1")
    found = cancelling.cancel_training(tmp_path / "case", train={"python": str(stub), "engine": "cpu"})
    assert found.sound(), found
    assert found.ended == 2
