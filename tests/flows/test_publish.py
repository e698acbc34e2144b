"""Links between flow runs and manifests, on a real Prefect server."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from flows.curate import Curated, curate
from saerl_core import gc, published
from saerl_core.errors import ConfigError, ServerError
from saerl_core.manifest import verify_manifest
from tasks.limits import device_slot
from tests.flows.conftest import make_config
from tests.flows.test_watch import events


def runs_tagged(tag: str) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"tags": {"all_": [tag]}}))


def test_runs_and_manifest_name_each_other(curated_once: tuple[Path, Curated]) -> None:
    folder, curated = curated_once
    root = folder / "saerl-out"
    record = published.read(root, curated.id)
    assert record is not None
    run = runs_tagged(f"manifest:{curated.id}")[-1]
    assert "data:toy" in run.tags
    assert run.name == f"curate · run · {curated.id}"
    assert record.runs[0].flow_run_id in {str(run.id) for run in runs_tagged(f"manifest:{curated.id}")}
    assert not [file for file in curated.manifest.path.iterdir() if b"flow_run" in file.read_bytes()]
    verify_manifest(curated.manifest.path)


def test_a_manifest_is_announced_once_for_each_target(curated_once: tuple[Path, Curated]) -> None:
    again = partial(make_config, curated_once[0])
    for _ in range(2):
        curate(again().model_copy(update={"name": "announced"}))
    (event,) = events("saerl.manifest.announced")
    assert event["event"] == "saerl.manifest.published"
    assert event["resource"]["saerl.path"] == str(curated_once[1].manifest.path)


def test_an_event_that_the_server_did_not_take_is_sent_by_the_next_run(
        curated_once: tuple[Path, Curated], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(curated_once[0]).model_copy(update={"name": "away"})

    def refuse(*_: object, **__: object) -> None:
        raise ServerError("away")

    with monkeypatch.context() as patch:
        patch.setattr("flows.publish.emit", refuse)
        with pytest.raises(ServerError):
            curate(config)
    curate(config)
    assert len(events("saerl.manifest.away")) == 1


def test_a_copy_of_a_workspace_makes_its_own(curated_once: tuple[Path, Curated], tmp_path: Path,
                                             forward_passes: list[int]) -> None:
    shutil.copytree(curated_once[0] / "saerl-out", tmp_path / "saerl-out")
    made = curate(make_config(tmp_path))
    assert (made.id, forward_passes) == (curated_once[1].id, [])
    named = [Path(path) for entry in made.stages for path in entry.artifacts]
    assert named
    assert all(path.is_relative_to(tmp_path) for path in [*named, made.manifest.path])


def test_task_runs_say_what_and_how_much(curated_once: tuple[Path, Curated]) -> None:
    record = published.read(curated_once[0] / "saerl-out", curated_once[1].id)
    assert record is not None
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(
            id=FlowRunFilterId(any_=[record.runs[0].flow_run_id])))  # type: ignore[list-item]
    names = {task.name for task in tasks}
    assert {"read · prompts.jsonl", "extract 1/3 · 64 prompts", "extract 3/3 · 32 prompts", "cluster · 160 prompts",
            "label · 20 prompts x 2 answers", "corrupt · 60 copies", "quality · 160 prompts",
            "manifest · 160 prompts"} <= names
    assert all(" · " in name for name in names)


def test_gc_keeps_all_that_a_curation_made_and_finds_it_when_the_manifest_goes(
        curated_once: tuple[Path, Curated], tmp_path: Path) -> None:
    config = make_config(tmp_path)
    made = curate(config)
    assert gc.find(config.root).garbage == ()
    shutil.rmtree(made.manifest.path)
    found = gc.remove(config.root)
    assert {item.kind for item in found.garbage} == {"artifact", "features", "result", "record"}
    assert not list((config.root / "artifacts").iterdir())
    again = curate(config)
    assert (again.id, again.prompts_read_by_model) == (made.id, 160)


@pytest.fixture
def no_limit(prefect_server: None) -> None:
    """A server without the limit `gpu`."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_global_concurrency_limit_by_name("gpu")


def test_gpu_work_without_a_limit_on_the_server_is_refused_in_one_line(no_limit: None) -> None:
    with pytest.raises(ConfigError, match="prefect gcl create gpu --limit 1"), device_slot("cuda"):
        pass


def test_gpu_work_takes_turns_and_cpu_work_does_not_wait(no_limit: None) -> None:
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=1))

    @flow
    def work() -> str:
        with (device_slot("cuda"), device_slot("cpu"), pytest.raises(TimeoutError),
              concurrency("gpu", occupy=1, strict=True, timeout_seconds=0.5)):
            pass
        return "alone"

    assert work() == "alone"
    with concurrency("gpu", occupy=1, strict=True, timeout_seconds=60):
        pass
