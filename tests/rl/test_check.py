"""verl's own code judges a job before it starts, for both engines, on a machine without a GPU."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from saerl_core.compare.arms import arm_config, check_arms
from saerl_core.compare.rounds import round_config
from saerl_core.config import load_config
from saerl_core.errors import TrainError
from saerl_core.rl.check import check_config_only, check_job
from saerl_core.rl.job import build_job
from tests.conftest import ROOT
from tests.rl.conftest import MakeConfig

pytest.importorskip("verl", reason="verl is not installed (pip install 'saerl[verl]')")


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_a_good_job_passes_with_the_manifests_batches(
    make_config: MakeConfig, manifest_dir: Path, heldout_parquet: Path, tmp_path: Path, engine: str
) -> None:
    check = check_job(build_job(make_config(train={"engine": engine}), manifest_dir, heldout_parquet, tmp_path / "run"))
    assert (check.engine, check.steps, check.rows, check.heldout_rows) == (engine, 6, 24, 8)
    assert 10 < check.longest_prompt <= 64
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("verifier", ["math", "import:judge_in_verl:same"])
def test_the_verifier_is_found_in_verls_interpreter(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "judge_in_verl.py").write_text("def same(response, answer):\n    return answer in response\n")
    assert check_config_only(make_config(policy={"verifier": verifier})).verl.startswith("0.9")


def test_a_policy_that_is_not_here_can_still_have_its_configuration_checked(make_config: MakeConfig) -> None:
    config = make_config(
        train={"engine": "gpu", "gpus": 2, "tensor_parallel": 2, "micro_batch_size": 8},
        policy={"model": "Qwen/Qwen2.5-Math-1.5B"},
    )
    check = check_config_only(config)
    assert (check.engine, check.model_found) == ("gpu", False)
    assert check.verl.startswith("0.9")


@pytest.mark.parametrize("settings", [{}, {"clip_high": 0.28, "loss_aggregation": "token-mean"}], ids=["GRPO", "DAPO"])
def test_a_comparison_with_vllm_rollouts_passes_verls_own_validation(settings: dict[str, Any]) -> None:
    """Arms differ in what they are trained on, so verl sees two kinds of them: with rounds and without."""
    config = load_config(ROOT / "examples" / "qwen2.5-math-1.5b.yaml", ("schedule.steps=300",))
    config = config.model_copy(update={"train": config.train.model_copy(update=settings)})
    check_arms(config)
    whole = arm_config(config, "checked-keys", 0)
    for part in (whole, round_config(whole, 1, 2, Path("checkpoint"))):
        part = part.model_copy(update={"policy": config.policy})
        check = check_config_only(part)
        assert (check.engine, check.model_found) == ("gpu", False)
        assert (part.train.test_greedy, part.train.test_samples) == (True, 8)


def test_what_verl_refuses_is_one_line(make_config: MakeConfig) -> None:
    config = make_config(train={"overrides": ["actor_rollout_ref.actor.loss_agg_mode=typo"]})
    with pytest.raises(TrainError, match="verl refuses the job") as caught:
        check_config_only(config)
    assert "typo" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_is_too_long_is_named(make_config: MakeConfig, manifest_dir: Path, tmp_path: Path) -> None:
    job = build_job(make_config(policy={"max_prompt_tokens": 10}), manifest_dir, None, tmp_path / "run")
    with pytest.raises(TrainError, match=r"prompt 'p0-0' has \d+ tokens, policy.max_prompt_tokens is 10"):
        check_job(job)


def test_code_that_comes_with_a_model_is_refused_unless_trusted(
    make_config: MakeConfig, tiny_policy_dir: Path, manifest_dir: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(tiny_policy_dir, policy)
    tokenizer = json.loads((policy / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (policy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    job = build_job(make_config(policy={"model": str(policy)}), manifest_dir, None, tmp_path / "run")
    with pytest.raises(TrainError, match=r"policy\.trust_remote_code"):
        check_job(job)


def test_an_interpreter_without_verl_is_told_apart(make_config: MakeConfig, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(TrainError, match="No module named 'verl'"):
        check_config_only(make_config(train={"python": str(bare)}))
    with pytest.raises(TrainError, match=r"train\.python: .* cannot be run: No such file"):
        check_config_only(make_config(train={"python": "/nowhere/python"}))
