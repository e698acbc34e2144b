"""Flow `train-sae`: the reader and a corpus → an SAE that `features.sae` can name, measured on held-out text."""

from __future__ import annotations

import json
import shutil
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.check import check_sae_training
from flows.stages import run_stage
from saerl_core import locks
from saerl_core.config import RunConfig
from saerl_core.locks import in_use
from saerl_core.report.sae_training import training_markdown
from tasks.train_sae import CURVE, checkpoints, choose_out, load_card, publish, resolve_training, training_config
from tasks.train_sae import train_sae as stage


@flow(name="train-sae", flow_run_name="train-sae · {config.name}", persist_result=False)
def train_sae(config: RunConfig) -> dict[str, Any]:
    """Train an SAE for the config's reader; resume what was interrupted, skip what is done."""
    check_sae_training(config)
    training, out = training_config(config), choose_out(config)
    inputs = resolve_training(config)
    unfinished = checkpoints(config, inputs)
    with in_use(config.root), locks.exclusive(unfinished.with_name(f".{unfinished.name}.lock")):
        made, entry = run_stage(config, stage, inputs, config, inputs.identity,
                                training.tokens // training.batch_tokens, describe=lambda ref: ref.path.name)
        publish(made, out)
        shutil.rmtree(unfinished, ignore_errors=True)
    card = load_card(made)
    curve = json.loads((made.path / CURVE).read_text(encoding="utf-8"))
    create_markdown_artifact(key="sae", markdown=training_markdown(card, curve), description=f"SAE {made.path.name}")
    return {"sae": str(out), "id": made.path.name, "trained_now": not entry.cached,
            **{name: card[name] for name in ("architecture", "d_sae", "layer", "training", "heldout")}}
