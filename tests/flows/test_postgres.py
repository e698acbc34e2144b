"""The flows on a Prefect server whose database is a real Postgres, started for the test on a free port."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from benchmarks.served import until
from flows.guard import end_all, guard
from tests.flows.conftest import make_config

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def program(name: str) -> str:
    """A program of Postgres's; Debian keeps them apart from the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(debian[-1]) if debian else None)
    if found is None:
        pytest.skip("Postgres is not installed (Debian: apt-get install postgresql)")
    return found


@pytest.fixture
def postgres() -> Iterator[str]:
    """Address of a fresh database; Postgres refuses to run as root, so root becomes its own user."""
    server, initdb = program("postgres"), program("initdb")
    become: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("runuser") is None or "postgres" not in Path("/etc/passwd").read_text():
            pytest.skip("Postgres does not run as root, and there is no user postgres to become")
        become = ["runuser", "-u", "postgres", "--"]
    user = "postgres" if become else getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="saerl-postgres-", ignore_cleanup_errors=True) as folder:
        if become:
            shutil.chown(folder, "postgres")
        data, port = str(Path(folder, "data")), free_port()
        subprocess.run([*become, initdb, "-D", data, "-U", user, "-A", "trust", "-N"], check=True, capture_output=True,
                       cwd=folder)
        command = [*become, server, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        try:
            ready = [program("pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
            until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0 or None, 30)
            yield f"postgresql+asyncpg://{user}@127.0.0.1:{port}/postgres"
        finally:
            with suppress(psutil.NoSuchProcess):  # they end each other
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.terminate()
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture
def server(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a Prefect server on it."""
    port, token = free_port(), guard()
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", postgres)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    subprocess.Popen([sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def healthy() -> bool | None:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=2).is_success or None
        except httpx.HTTPError:
            return None

    try:
        until(healthy, 120)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        end_all(token)


def test_a_curation_runs_is_deployed_and_is_cached_on_postgres(server: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(make_config(tmp_path).model_dump(mode="json", exclude={"base"})))
    environment = {**os.environ, "PREFECT_API_URL": server}

    def saerl(*arguments: str) -> dict[str, object]:
        done = subprocess.run([sys.executable, "-m", "flows.cli", *arguments, str(config), "--json"], env=environment,
                              capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = saerl("curate"), saerl("curate")
    assert (first["prompts_read_by_model"], second["prompts_read_by_model"]) == (160, 0)
    assert first["manifest"] == second["manifest"]
    assert saerl("deploy") == saerl("deploy") == {"deployments": ["curate/run"]}
    with httpx.Client(base_url=server) as api:
        runs = api.post("/flow_runs/filter", json={"flow_runs": {"tags": {"all_": [f"manifest:{first['id']}"]}}}).json()
        assert [run["state_type"] for run in runs] == ["COMPLETED", "COMPLETED"]
        cached = api.post("/task_runs/filter", json={"task_runs": {"state": {"name": {"any_": ["Cached"]}}}}).json()
        assert len(cached) > 8
        version = api.get("/admin/settings").json()["server"]["database"]["connection_url"]
    assert "postgresql" in version or version.startswith("*")
