"""A job says the same thing for the same inputs, belongs to its manifest, and leaves no secret behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from saerl_core.errors import ArtifactError, ConfigError, ModelError
from saerl_core.rl.job import build_job
from saerl_core.rl.settings import resolve_engine
from tests.rl.conftest import MakeConfig
from tests.rl.tiny import save_manifest


def _settings(overrides: tuple[str, ...]) -> dict[str, str]:
    return dict(override.lstrip("+").split("=", 1) for override in overrides)


def test_the_manifest_decides_data_batches_and_steps(
    make_config: MakeConfig, manifest_dir: Path, heldout_parquet: Path, tmp_path: Path
) -> None:
    job = build_job(make_config(), manifest_dir, heldout_parquet, tmp_path / "run")
    settings = _settings(job.overrides)
    assert (job.batch_size, job.steps, job.manifest_id) == (4, 6, manifest_dir.name)
    assert settings["data.train_files"] == f"'{manifest_dir / 'train.parquet'}'"
    assert settings["data.train_batch_size"] == settings["actor_rollout_ref.actor.ppo_mini_batch_size"] == "4"
    assert settings["trainer.total_training_steps"] == "6"
    assert settings["data.shuffle"] == settings["data.filter_overlong_prompts"] == "false"
    assert settings["trainer.v1.trainer_mode"] == "sync"


def test_the_config_decides_the_algorithm(
    make_config: MakeConfig, manifest_dir: Path, heldout_parquet: Path, tmp_path: Path
) -> None:
    config = make_config(train={"clip_high": 0.28, "kl_coef": 0.01, "loss_aggregation": "seq-mean-token-mean",
                                "warmup_steps": 3, "seed": 7})
    settings = _settings(build_job(config, manifest_dir, heldout_parquet, tmp_path / "run").overrides)
    assert settings["algorithm.adv_estimator"] == "grpo"
    assert settings["actor_rollout_ref.actor.clip_ratio_low"] == "0.2"
    assert settings["actor_rollout_ref.actor.clip_ratio_high"] == "0.28"
    assert settings["actor_rollout_ref.actor.use_kl_loss"] == "true"
    assert settings["actor_rollout_ref.actor.kl_loss_coef"] == "0.01"
    assert settings["actor_rollout_ref.actor.loss_agg_mode"] == "seq-mean-token-mean"
    assert settings["actor_rollout_ref.actor.optim.lr_warmup_steps"] == "3"
    assert settings["actor_rollout_ref.rollout.seed"] == "7"


def test_without_a_heldout_set_there_are_no_validations(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path
) -> None:
    assert _settings(build_job(make_config(), manifest_dir, None, tmp_path).overrides)["trainer.test_freq"] == "-1"


def test_the_gpu_engine_is_vllm_and_keeps_the_cpu_platform_out(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path
) -> None:
    job = build_job(make_config(train={"engine": "gpu"}), manifest_dir, None, tmp_path)
    settings = _settings(job.overrides)
    assert settings["actor_rollout_ref.rollout.name"] == "vllm"
    assert settings["actor_rollout_ref.rollout.dtype"] == "bfloat16"
    assert "VERL_PLATFORM" not in job.environment
    assert "CUDA_VISIBLE_DEVICES" not in job.unset


def test_users_overrides_come_last(make_config: MakeConfig, manifest_dir: Path, tmp_path: Path) -> None:
    wanted = "actor_rollout_ref.actor.optim.lr=0.5"
    assert build_job(make_config(train={"overrides": [wanted]}), manifest_dir, None, tmp_path).overrides[-1] == wanted


def test_an_override_that_breaks_the_order_stops_the_build(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.shuffle=True"):
        build_job(make_config(train={"overrides": ["data.shuffle=True"]}), manifest_dir, None, tmp_path)


def test_a_job_is_the_same_wherever_it_runs(make_config: MakeConfig, manifest_dir: Path, tmp_path: Path) -> None:
    here = build_job(make_config(), manifest_dir, None, tmp_path / "here")
    there = build_job(make_config(), manifest_dir, None, tmp_path / "there")
    assert here.identity == there.identity


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"learning_rate": 2e-3}, False),
        ({"seed": 1}, False),
        ({"rollouts": 8}, False),
        ({"save_every": 5}, True),
        ({"test_every": 5}, True),
        ({"retries": 5}, True),
    ],
)
def test_identity_changes_with_what_decides_the_result(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path, change: dict[str, float], same: bool
) -> None:
    before = build_job(make_config(), manifest_dir, None, tmp_path)
    after = build_job(make_config(train=change), manifest_dir, None, tmp_path)
    assert (before.identity == after.identity) is same


def test_identity_changes_with_manifest_and_policy(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path
) -> None:
    job = build_job(make_config(), manifest_dir, None, tmp_path)
    other = save_manifest(tmp_path / "manifests", batch_size=4, batches=6, seed=5)
    assert build_job(make_config(), other, None, tmp_path).identity != job.identity
    assert build_job(make_config(), manifest_dir, None, tmp_path, policy_hash="other").identity != job.identity


def test_identity_changes_with_the_verifier_and_with_its_source(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    judge = tmp_path / "judge_of_jobs.py"

    def identity(verifier: str) -> str:
        sys.modules.pop("judge_of_jobs", None)
        return build_job(make_config(policy={"verifier": verifier}), manifest_dir, None, tmp_path).identity

    judge.write_text("def same(response, answer):\n    return answer in response\n")
    found = {identity("exact"), identity("math"), identity("import:judge_of_jobs:same")}
    judge.write_text("def same(response, answer):\n    return answer == response\n")
    found.add(identity("import:judge_of_jobs:same"))
    assert len(found) == 4


def test_a_damaged_manifest_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path / "manifests", batch_size=4, batches=2)
    with (manifest / "train.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"train\.parquet"):
        build_job(make_config(), manifest, None, tmp_path)


def test_a_missing_policy_is_named(make_config: MakeConfig, manifest_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        build_job(make_config(policy={"model": "./nowhere"}), manifest_dir, None, tmp_path)


def test_the_environment_is_inherited_but_never_stored(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    job = build_job(make_config(), manifest_dir, None, tmp_path)
    environment = job.child_environment()
    assert environment["HF_TOKEN"] == "hf_secret"
    assert "CUDA_VISIBLE_DEVICES" not in environment  # empty would hide the declared device from Ray
    assert environment["PYTHONPATH"].endswith(":/mine")
    assert "hf_secret" not in job.model_dump_json()


def test_the_cpu_engine_has_one_worker(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"train\.gpus = 2"):
        resolve_engine(make_config(train={"gpus": 2}))


def test_batches_must_divide_over_the_gpus(make_config: MakeConfig, manifest_dir: Path, tmp_path: Path) -> None:
    config = make_config(train={"engine": "gpu", "gpus": 3})
    with pytest.raises(ConfigError, match=r"schedule\.batch_size \(4\) x train\.rollouts \(4\)"):
        build_job(config, manifest_dir, None, tmp_path)


@pytest.mark.parametrize(("micro_batch_size", "fits"), [(5, "4 does"), (32, "16 does")])
def test_a_step_must_divide_into_micro_batches(
    micro_batch_size: int, fits: str, make_config: MakeConfig, manifest_dir: Path, tmp_path: Path
) -> None:
    def build(**settings: Any) -> None:
        config = make_config(train={"micro_batch_size": micro_batch_size, **settings})
        build_job(config, manifest_dir, None, tmp_path / "run")

    with pytest.raises(ConfigError, match=f"micro_batch_size = {micro_batch_size}.* 16 sequences .*{fits}"):
        build()
    build(overrides=["actor_rollout_ref.actor.use_dynamic_bsz=true"])  # then verl cuts it by tokens


def test_an_environments_interpreter_keeps_its_symbolic_link(
    make_config: MakeConfig, manifest_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "python").symlink_to("/usr/bin/env")
    job = build_job(make_config(train={"python": "env/python"}), manifest_dir, None, tmp_path / "run")
    assert job.python == str(tmp_path / "env" / "python")
