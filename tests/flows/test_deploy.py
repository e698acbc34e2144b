"""The deployments: the file as it stands, a config in the toy's place, and both on a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client

from flows.deploy import POOL, deploy, deployment_file
from flows.events import resource_id
from saerl_core.config import RunConfig, build_config
from tests.conftest import ROOT


@pytest.fixture
def own(world: Callable[..., RunConfig]) -> RunConfig:
    return world(train={"seed": 7}).model_copy(update={"name": "own"})


def test_the_files_own_config_is_valid() -> None:
    tree = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())
    for deployment in tree["deployments"]:
        config = build_config(deployment["parameters"]["config"], base=ROOT)
        assert config.name == deployment["name"] == "toy"


def test_a_config_takes_the_toys_place_and_means_the_same(own: RunConfig) -> None:
    tree = deployment_file(own)
    for deployment in tree["deployments"]:
        assert RunConfig.model_validate(deployment["parameters"]["config"]) == own
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        for trigger in deployment.get("triggers", []):
            assert trigger["match"]["prefect.resource.id"].endswith(".own")
            assert "toy" not in trigger["name"]


def test_triggers_wait_for_the_events_that_saerl_emits(own: RunConfig) -> None:
    known = {("saerl.data.changed", resource_id("data", "own")), ("saerl.sae.changed", resource_id("sae", "own")),
             ("saerl.manifest.published", resource_id("manifest", "own"))}
    waited = {(trigger["expect"][0], trigger["match"]["prefect.resource.id"])
              for deployment in deployment_file(own)["deployments"] for trigger in deployment.get("triggers", [])}
    assert waited == known


@pytest.fixture
def deployed(own: RunConfig, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Deployments on the server, by flow."""
    from prefect.settings import get_current_settings

    api = get_current_settings().api.url
    assert api is not None
    monkeypatch.setenv("PREFECT_API_URL", api)
    names = deploy(own)
    assert deploy(own) == names == ["curate/own", "train/own", "pipeline/own"]
    with get_client(sync_client=True) as client:
        return {name.partition("/")[0]: client.read_deployment_by_name(name) for name in names}


def test_the_server_has_them_once_with_forms_schedules_and_triggers(deployed: dict[str, Any]) -> None:
    curate = deployed["curate"]
    assert curate.work_pool_name == POOL
    assert [(schedule.slug, schedule.active) for schedule in curate.schedules] == [("nightly", True)]
    schema = curate.parameter_openapi_schema
    schema = schema if isinstance(schema, dict) else schema.model_dump()
    clusters = schema["definitions"]["ClustersConfig"]["properties"]
    assert clusters["k"]["description"] == "Number of clusters."
    with get_client(sync_client=True) as client:
        automations = client.request("POST", "/automations/filter", json={}).json()
    mine = [automation for automation in automations if "own" in automation["name"]]
    assert sorted((automation["name"], automation["enabled"]) for automation in mine) == [
        ("curate own when its SAE changes", True), ("curate own when its data change", True),
        ("run own when its SAE changes", False), ("run own when its data change", False),
        ("train own on a new manifest", True)]


def test_templates_of_docker_and_kubernetes_name_only_variables_that_they_define() -> None:
    import json
    import re

    for name in ("docker", "kubernetes"):
        template = json.loads((Path(ROOT) / "deployments" / f"{name}.json").read_text())
        used = set(re.findall(r"\{\{ *(\w+) *\}\}", json.dumps(template["job_configuration"])))
        assert used == set(template["variables"]["properties"])
