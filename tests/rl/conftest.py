from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saerl_core.config import RunConfig, build_config
from saerl_core.rl import verl_side
from saerl_core.rl.rollouts import Policy, load_policy
from tests.rl.tiny import save_heldout, save_manifest, save_tiny_policy

# As the launcher does for verl: the files in there import each other as flat modules.
sys.path.insert(0, str(Path(verl_side.__file__).parent))

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="session")
def tiny_policy(tiny_policy_dir: Path) -> Policy:
    return load_policy(tiny_policy_dir, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def manifest_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six batches of four prompts."""
    return save_manifest(tmp_path_factory.mktemp("manifests"), batch_size=4, batches=6)


@pytest.fixture(scope="session")
def heldout_parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_heldout(tmp_path_factory.mktemp("heldout") / "heldout.parquet", prompts=8)


@pytest.fixture
def make_config(tiny_policy_dir: Path, tmp_path: Path) -> MakeConfig:
    """A config for the tiny policy on the CPU; keyword arguments are fields of its sections `train` and `policy`."""

    def make(train: dict[str, Any] | None = None, policy: dict[str, Any] | None = None) -> RunConfig:
        tree = {
            "data": {"path": "unused.jsonl"},
            "features": {"model": str(tiny_policy_dir), "sae": "unused"},
            "policy": {
                "model": str(tiny_policy_dir), "max_prompt_tokens": 64, "max_response_tokens": 8, **(policy or {}),
            },
            "train": {
                "engine": "cpu", "rollouts": 4, "learning_rate": 1e-3, "micro_batch_size": 16,
                "save_every": 2, "test_every": 3, **(train or {}),
            },
            "schedule": {"batch_size": 4, "clusters_per_batch": 2},
        }
        return build_config(tree, base=tmp_path)

    return make
