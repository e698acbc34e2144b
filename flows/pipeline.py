"""Flow `pipeline`: curate, then train on what was curated. What `saerl run` runs."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.check import check_inputs
from flows.curate import TWO_WORKERS, curate
from flows.outcome import manifest_figures
from flows.publish import tag_run
from flows.train import train
from saerl_core.config import RunConfig


@flow(name="pipeline", flow_run_name="pipeline · {config.name}", persist_result=False, task_runner=TWO_WORKERS)
def pipeline(config: RunConfig) -> dict[str, Any]:
    """From a prompt file to a policy that verl has trained on a curated manifest."""
    check_inputs(config, train=True)
    tag_run(f"data:{config.data.name}")
    curated = curate(config)
    tag_run(f"manifest:{curated.id}")
    trained = train(config, curated.manifest.path)
    return {**manifest_figures(curated.manifest.path), **curated.figures(), "train": trained}
