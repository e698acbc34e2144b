from __future__ import annotations

import sys
from pathlib import Path

import pytest

from saerl_core.rl import verl_side
from saerl_core.rl.rollouts import Policy, load_policy
from tests.rl.tiny import save_tiny_policy

# As the launcher does for verl: the files in there import each other as flat modules.
sys.path.insert(0, str(Path(verl_side.__file__).parent))


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="session")
def tiny_policy(tiny_policy_dir: Path) -> Policy:
    return load_policy(tiny_policy_dir, device="cpu", dtype="float32")
