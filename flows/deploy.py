"""`deployments/prefect.yaml` for a config of one's own: the toy's config and name in it give way, all else stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from saerl_core.config import RunConfig
from saerl_core.errors import ConfigError

POOL = "saerl"
_TOY = "toy"


def deployment_file(config: RunConfig) -> dict[str, Any]:
    """The tree of `deployments/prefect.yaml` with a config in the toy's place.

    Without a held-out set a config can be curated, not trained on; without `sae_training` no SAE is trained.
    """
    tree = yaml.safe_load((resources.files("deployments") / "prefect.yaml").read_text(encoding="utf-8"))
    parameters = {"config": config.model_dump(mode="json", exclude_unset=True) | {"base": config.base}}
    for deployment in tree["deployments"]:
        deployment["name"] = config.name
        deployment["parameters"] = parameters
        for trigger in deployment.get("triggers", []):
            trigger["name"] = trigger["name"].replace(f" {_TOY} ", f" {config.name} ")
            resource = trigger["match"]["prefect.resource.id"].removesuffix(f".{_TOY}")
            trigger["match"] = {"prefect.resource.id": f"{resource}.{config.name}"}  # anchors share the old one
    possible = {"flows.curate.curate"}
    if config.data.heldout is not None:
        possible |= {"flows.train.train", "flows.pipeline.pipeline"}
    if config.sae_training is not None:
        possible.add("flows.train_sae.train_sae")
    usable = [deployment for deployment in tree["deployments"] if deployment["entrypoint"] in possible]
    return {"name": tree["name"], "pull": [], "deployments": usable}


def prepare_server() -> None:
    """Make the work pool and the limit that deployments and GPU work rely on, where the server lacks them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    from tasks.limits import GPU

    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(
                name=POOL, type="process", base_job_template=ProcessWorker.get_default_base_job_template()))
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))


def deploy(config: RunConfig) -> list[str]:
    """Put the deployments of a config on the Prefect server. Those that are there are brought up to date.

    Returns:
        Their names: `curate/toy`.

    Raises:
        ConfigError: the server refused; its words are in the message.
    """
    prepare_server()
    tree = deployment_file(config)
    names = [f"{deployment['entrypoint'].rpartition('.')[2]}/{config.name}" for deployment in tree["deployments"]]
    # in its file Prefect fills in, or strikes out, what stands in double braces
    apart = {name: deployment.pop("parameters") for name, deployment in zip(names, tree["deployments"], strict=True)
             if "{{" in str(deployment["parameters"])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prefect.yaml")
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(path),
                               "--all"], cwd=folder, capture_output=True, text=True, check=False,
                              env={**os.environ, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR"})
    if done.returncode:
        words = " ".join((done.stdout + done.stderr).split())
        raise ConfigError(f"the Prefect server did not take the deployments: {words[-400:]}")
    if apart:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import DeploymentUpdate

        with get_client(sync_client=True) as client:
            for name, parameters in apart.items():
                found = client.read_deployment_by_name(name)
                client.update_deployment(found.id, DeploymentUpdate(parameters=parameters))
    return names
