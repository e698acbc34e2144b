"""What a run reads, by content: hashes of data, models and SAE, and the layer that all of them agree on.

Never cached: these hashes are what everything else is cached by.
"""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from saerl_core import models, sae_registry, sources
from saerl_core.config import RunConfig
from saerl_core.extract import extraction_parameters
from saerl_core.feature_store import store_name
from saerl_core.rl import verifiers
from saerl_core.rl.consumed import rewards_hash
from saerl_core.sae_spec import SaeSpec, choose_layer, encoder_spec, read_spec
from saerl_core.sae_spec import encoder_hash as hash_encoder


class Inputs(BaseModel):
    """Resolved places and content hashes of a run's inputs."""

    model_config = ConfigDict(frozen=True)

    data: tuple[Path, ...]
    data_hash: str
    evaluations: dict[str, tuple[Path, ...]]
    """files of every evaluation set, by its name"""
    evaluation_hashes: dict[str, str]
    model: Path
    model_hash: str
    layers: int
    d_model: int
    sae: Path
    encoder: SaeSpec
    """shape of the SAE, or of the control in its place (`features.encoder`)"""
    encoder_hash: str
    layer: int
    store: Path
    policy: Path
    policy_hash: str
    verifier: str
    """identity of `policy.verifier`: name, versions, hash of a user's source file"""
    rewards: Path | None
    """folder of an earlier training, for `difficulty.rewards`"""
    rewards_hash: str | None


def resolve_inputs(config: RunConfig) -> Inputs:
    """Find, check and hash what a config names.

    Raises:
        SaerlError: something is missing, or SAE, layer and model do not fit.
    """
    base = Path(config.base)
    data = sources.find_files(config.data, base)
    evaluations = {name: sources.find_files(source, base) for name, source in config.data.evaluations().items()}
    sae_folder = sae_registry.fetch(config.features.sae, base, config.root)
    sae = read_spec(sae_folder)
    model = models.fetch(config.features.model, base)
    policy = models.fetch(config.policy.model, base)
    spec = models.read_spec(model)
    layer = choose_layer(sae, spec, config.features.layer)
    model_hash, encoder_hash = models.model_hash(model), hash_encoder(sae_folder, config.features)
    rewards = config.resolve(config.difficulty.rewards) if config.difficulty.rewards else None
    store = store_name(model_hash, encoder_hash, extraction_parameters(config.features, layer))
    return Inputs(
        data=data, data_hash=sources.content_hash(data), evaluations=evaluations,
        evaluation_hashes={name: sources.content_hash(files) for name, files in evaluations.items()},
        model=model, model_hash=model_hash, layers=spec.layers, d_model=spec.d_model,
        sae=sae_folder, encoder=encoder_spec(sae, config.features), encoder_hash=encoder_hash,
        layer=layer, store=config.root / "features" / store, policy=policy,
        policy_hash=model_hash if policy == model else models.model_hash(policy),
        verifier=verifiers.load(config.policy, base).identity,
        rewards=rewards, rewards_hash=rewards_hash(rewards) if rewards else None,
    )


@task(name="fingerprint", persist_result=False, cache_policy=NO_CACHE)
def fingerprint(config: RunConfig) -> Inputs:
    """Find, check and hash what the config names."""
    return resolve_inputs(config)
