"""The deployments: the file as it stands, a config in the toy's place, and both on a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonpatch import JsonPatch
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values

from flows.deploy import POOL, deploy, deployment_file
from flows.events import resource_id
from saerl_core.config import RunConfig, build_config
from tests.conftest import ROOT
from tests.flows.conftest import make_config


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    heldout = {"path": "heldout.jsonl", "columns": {"prompt": "problem"}}
    config = make_config(tmp_path_factory.mktemp("own"), train={"seed": 7}, data={"heldout": heldout})
    return config.model_copy(update={"name": "own"})


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


def test_without_a_heldout_set_there_is_nothing_to_train(own: RunConfig) -> None:
    config = own.model_copy(update={"data": own.data.model_copy(update={"heldout": None})})
    assert [deployment["entrypoint"] for deployment in deployment_file(config)["deployments"]] == [
        "flows.curate.curate"]


def test_triggers_wait_for_the_events_that_saerl_emits(own: RunConfig) -> None:
    known = {("saerl.data.changed", resource_id("data", "own")), ("saerl.sae.changed", resource_id("sae", "own")),
             ("saerl.manifest.published", resource_id("manifest", "own"))}
    waited = {(trigger["expect"][0], trigger["match"]["prefect.resource.id"])
              for deployment in deployment_file(own)["deployments"] for trigger in deployment.get("triggers", [])}
    assert waited == known


@pytest.fixture(scope="module")
def deployed(own: RunConfig, prefect_server: None) -> Iterator[dict[str, Any]]:
    """Deployments on the server, by flow."""
    from prefect.settings import get_current_settings

    api = get_current_settings().api.url
    assert api is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", api)
        names = deploy(own)
        assert deploy(own) == names == ["curate/own", "train/own", "pipeline/own"]
        with get_client(sync_client=True) as client:
            yield {name.partition("/")[0]: client.read_deployment_by_name(name) for name in names}


def test_the_server_has_them_once_with_forms_schedules_and_triggers(deployed: dict[str, Any]) -> None:
    curate = deployed["curate"]
    assert curate.work_pool_name == POOL
    assert [(schedule.slug, schedule.active) for schedule in curate.schedules] == [("nightly", True)]
    schema = curate.parameter_openapi_schema
    schema = schema if isinstance(schema, dict) else schema.model_dump()
    clusters = schema["definitions"]["ClustersConfig"]["properties"]
    assert clusters["k"]["description"].startswith("Number of clusters")
    with get_client(sync_client=True) as client:
        automations = client.request("POST", "/automations/filter", json={}).json()
    mine = [automation for automation in automations if "own" in automation["name"]]
    assert sorted((automation["name"], automation["enabled"]) for automation in mine) == [
        ("curate own when its SAE changes", True), ("curate own when its data change", True),
        ("run own when its SAE changes", False), ("run own when its data change", False),
        ("train own on a new manifest", True)]


def test_double_braces_in_a_config_reach_the_server_as_they_are(own: RunConfig, deployed: dict[str, Any]) -> None:
    data = own.data.model_copy(update={"instruction": r"Answer as \frac{{a}}{{b}}. {{ $HOME }} {{ name }}"})
    deploy(own.model_copy(update={"data": data, "name": "braces"}))
    with get_client(sync_client=True) as client:
        for name in ("curate/braces", "pipeline/braces"):
            found = client.read_deployment_by_name(name)
            assert RunConfig.model_validate(found.parameters["config"]).data.instruction == data.instruction


def test_the_file_deploys_the_toy_with_one_command_from_the_repositorys_root(deployed: dict[str, Any]) -> None:
    done = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file",
                           "deployments/prefect.yaml", "--all"], cwd=ROOT, env={**os.environ, "PWD": str(ROOT)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with get_client(sync_client=True) as client:
        for name in ("curate/toy", "train/toy", "pipeline/toy"):
            found = client.read_deployment_by_name(name)
            config = build_config(found.parameters["config"], base=ROOT)
            assert config.name == "toy"
            assert found.pull_steps == [
                {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_server_takes_the_templates_and_they_name_only_variables_that_they_define(
        kind: str, prefect_server: None) -> None:
    template = json.loads((ROOT / "deployments" / f"{kind}.json").read_text())
    used = set(re.findall(r"\{\{ *(\w+) *\}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    with get_client(sync_client=True) as client:
        pool = client.create_work_pool(WorkPoolCreate(name=f"own-{kind}", type=kind, base_job_template=template))
    assert pool.base_job_template == template


def test_the_kubernetes_template_gives_a_job_that_prefects_worker_takes() -> None:
    """Its check, from `prefect_kubernetes.worker`: whatever it would add to the job, or replace, is an error."""
    template = json.loads((ROOT / "deployments" / "kubernetes.json").read_text())
    defaults = {name: field.get("default") for name, field in template["variables"]["properties"].items()}
    job = apply_values(template["job_configuration"]["job_manifest"],
                       {**defaults, "name": "curate", "labels": {}, "command": "prefect flow-run execute"})
    assert isinstance(job, dict)
    needed = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"labels": {}}, "spec": {"template": {"spec": {
        "parallelism": 1, "completions": 1, "restartPolicy": "Never", "containers": [{"name": "prefect-job"}]}}}}
    assert [change for change in JsonPatch.from_diff(job, needed) if change["op"] != "remove"] == []
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}


def test_compose_and_images_name_only_what_there_is() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE))
    for name, service in services.items():
        build = service.get("build")
        assert build is None or build["target"] in targets, name
        assert "@" in service["image"] or re.fullmatch(r"[\w-]+:\d[\w.-]+", service["image"]), f"{name} is not pinned"
        assert set(service.get("depends_on", ())) <= services.keys()
        assert name == "deploy" or "healthcheck" in service or name == "watcher"
        assert "init" not in service  # the images have tini
    for source in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / part).exists() for part in source.split())
    assert dockerfile.count("USER saerl") == len(targets - {"base"})
