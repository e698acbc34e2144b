"""A real Prefect server for the session, and a small real world: toy prompts, toy reader, toy SAE."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cli
from flows.curate import Curated, curate
from saerl_core.config import RunConfig, build_config
from tests.conftest import TOY

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # the heartbeat's thread costs a second a flow
    no_heartbeat = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with prefect_test_harness(server_startup_timeout=120), no_heartbeat:
        yield


def toy_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of the toy's training set."""
    with gzip.open(TOY / "train.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file][start : start + count]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(folder: Path, rows: int = 160, **changes: dict[str, Any]) -> RunConfig:
    """A config over the first toy rows; sections can be changed field by field."""
    write_rows(folder / "prompts.jsonl", toy_rows(rows))
    columns = {"id": "id", "prompt": "problem", "answer": "answer"}
    tree: dict[str, Any] = {
        "data": {"path": "prompts.jsonl", "name": "toy", "columns": columns},
        "features": {"model": "saerl:toy/lm", "sae": "saerl:toy/sae", "shard_rows": 64, "device": "cpu"},
        "clusters": {"k": 4, "dims": 64},
        "labels": {"count": 20, "samples": 2},
        "quality": {"count": 60},
        "schedule": {"batch_size": 8},
        "policy": {"model": "saerl:toy/lm", "max_prompt_tokens": 128, "max_response_tokens": 64},
    }
    for section, fields in changes.items():
        tree[section] = {**tree.get(section, {}), **fields}
    return build_config(tree, folder)


@pytest.fixture(scope="session")
def curated_once(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> tuple[Path, Curated]:
    """A workspace in which the config of `world()` was curated; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("curated")
    return folder, curate(make_config(folder))


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., RunConfig]:
    """Configs over a fresh workspace."""
    return partial(make_config, tmp_path)


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts in each forward pass of the reader, as they happen."""
    from saerl_core import backbone

    seen: list[int] = []
    real = backbone.residual_stream

    def counting(reader: Any, ids_BT: Any, *beginning: Any) -> Any:
        seen.append(len(ids_BT))
        return real(reader, ids_BT, *beginning)

    monkeypatch.setattr(backbone, "residual_stream", counting)
    return seen


@pytest.fixture
def saerl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `saerl ARGS` in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saerl", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def write_config(folder: Path, **changes: dict[str, Any]) -> Path:
    tree = make_config(folder, rows=60, **changes).model_dump(mode="json", exclude={"base"})
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
