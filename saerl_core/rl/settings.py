"""A config → what verl is told: hydra overrides, and the environment that its processes need."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from saerl_core.config import RunConfig
from saerl_core.device import has_gpu
from saerl_core.errors import ConfigError
from saerl_core.rl import verifiers, verl_side
from saerl_core.rl.overrides import check_user_overrides, spell
from saerl_core.rl.verl_side.saerl_judge import FOLDER_VARIABLE

Engine = Literal["cpu", "gpu"]

VERL_SIDE = Path(verl_side.__file__).parent
AGENT_LOOPS = "agent_loops.yaml"
"""In the run folder: verl's name for a loop → the function that makes it."""

_CPU_POLL_SECONDS = 0.05
_GPU_POLL_SECONDS = 0.5
_CPU_OBJECT_STORE_BYTES = 200_000_000
_CHECKPOINTS_KEPT = 2  # the last, and the one before it in case the last is being written


def resolve_engine(config: RunConfig) -> Engine:
    """`auto` is the GPU, if torch sees one.

    Raises:
        ConfigError: the CPU engine was asked for more than one device.
    """
    engine = config.train.engine
    if engine == "auto":
        engine = "gpu" if has_gpu() else "cpu"
    if engine == "cpu" and (config.train.gpus > 1 or config.train.nodes > 1):
        raise ConfigError(f"train.gpus = {config.train.gpus}, train.nodes = {config.train.nodes}: the CPU engine has "
                          "one worker; set both to 1, or train.engine: gpu")
    return engine


def interpreter(config: RunConfig) -> str:
    """The interpreter that has verl. Symbolic links are kept: an environment's python is one."""
    if config.train.python is None:
        return sys.executable
    if os.sep in config.train.python:
        return str(Path(config.base, Path(config.train.python).expanduser()).absolute())
    return config.train.python


def job_overrides(
    config: RunConfig,
    *,
    engine: Engine,
    model: str,
    train_parquet: Path,
    heldout_parquet: Path | None,
    run_dir: Path,
    batch_size: int,
    steps: int,
) -> tuple[str, ...]:
    """All hydra overrides of a job; the user's own come last.

    Raises:
        ConfigError: see `build_job`.
    """
    train = config.train
    sequences, devices = batch_size * train.rollouts, train.gpus * train.nodes
    if sequences % devices:
        raise ConfigError(f"schedule.batch_size ({batch_size}) x train.rollouts ({train.rollouts}) is not a multiple "
                          f"of the number of GPUs ({devices})")
    share = sequences // devices
    if share % train.micro_batch_size and not any("use_dynamic_bsz" in override for override in train.overrides):
        fits = max(size for size in range(1, min(share, train.micro_batch_size) + 1) if share % size == 0)
        raise ConfigError(f"train.micro_batch_size = {train.micro_batch_size}: does not divide the {share} sequences "
                          f"of a step on a device (schedule.batch_size {batch_size} x train.rollouts {train.rollouts} "
                          f"/ {devices}); {fits} does")
    settings: dict[str, Any] = {
        **_order_settings(train_parquet, batch_size, steps),
        **_data_settings(config, train_parquet, heldout_parquet),
        **_algorithm_settings(config, model, run_dir),
        **_recording_settings(config, engine, run_dir),
        **(_cpu_settings(config) if engine == "cpu" else _gpu_settings(config)),
    }
    return spell(settings) + check_user_overrides(train.overrides)


def job_environment(config: RunConfig, engine: Engine, run_dir: Path) -> dict[str, str]:
    """What the job's processes need in their environment."""
    common = {
        "HF_HUB_OFFLINE": "1",  # the policy is a folder by now
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(run_dir / "cache"),
        "HYDRA_FULL_ERROR": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
        "PYTHONUNBUFFERED": "1",
        FOLDER_VARIABLE: str(Path(config.base).resolve()),
        # Ray, and what asks it for an address, listen on loopback only. It names this after the systems where that is
        # the default.
        **({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if config.train.nodes == 1 else {}),
    }
    if engine == "gpu":
        return common
    return common | {
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # selects the FSDP engine
        "VERL_USE_EXTERNAL_MODULES": "saerl_cpu_platform,saerl_cpu_engine",
        "OMP_NUM_THREADS": str(_usable_cores()),
        # Processes take turns on the same cores: spinning threads would starve them. A short wait, though, bridges the
        # gap between two operations of a small model, where falling asleep and waking up costs more.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "3000",
        # glibc hands the memory of every large tensor back to the system and asks for it again: tens of thousands of
        # page faults a second. It is to keep it. (32 MiB is the highest threshold that it takes.)
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "RAY_enable_worker_prestart": "0",  # prestarted workers lack verl's runtime environment and are never used
        "RAY_worker_niceness": "0",  # Ray's default, 15, starves the job as soon as anything else runs
        "TQ_NUM_THREADS": "1",
    }


def _usable_cores() -> int:
    """Those that this process may run on, where the system says so; threads beyond them only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _order_settings(train_parquet: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Step k trains on rows k x batch_size and following, and on nothing else."""
    return {
        "data.train_files": str(train_parquet),
        "data.train_batch_size": batch_size,
        "data.gen_batch_size": None,
        "data.shuffle": False,  # verl's default is True, with a random seed
        "data.filter_overlong_prompts": False,
        "data.train_max_samples": -1,
        "data.truncation": "error",
        "algorithm.filter_groups.enable": False,
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "sync",
        "trainer.v1.sampler.sync_refill_failed_groups": False,
        # Within a step verl does not keep the order, so a step must be one update.
        "actor_rollout_ref.actor.ppo_mini_batch_size": batch_size,
        "trainer.total_epochs": 1,  # further epochs are further rows
        "trainer.total_training_steps": steps,
        "trainer.resume_mode": "auto",
    }


def _data_settings(config: RunConfig, train_parquet: Path, heldout_parquet: Path | None) -> dict[str, Any]:
    train, policy = config.train, config.policy
    return {
        # verl insists on a validation file, so without one it gets a row that it never uses.
        "data.val_files": str(heldout_parquet or train_parquet),
        "data.val_max_samples": -1 if heldout_parquet else 1,
        "trainer.test_freq": train.test_every if heldout_parquet else -1,
        "trainer.val_before_train": train.test_first and heldout_parquet is not None,
        "data.max_prompt_length": policy.max_prompt_tokens,
        "data.max_response_length": policy.max_response_tokens,
        "data.trust_remote_code": policy.trust_remote_code,
        "data.dataloader_num_workers": 0,  # rows are small; a worker process would only cost its start
        "data.seed": train.seed,
    }


def _algorithm_settings(config: RunConfig, model: str, run_dir: Path) -> dict[str, Any]:
    """GRPO; DAPO by clip_high and token-mean."""
    train = config.train
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.use_kl_in_reward": False,
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.trust_remote_code": config.policy.trust_remote_code,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.optim.lr": train.learning_rate,
        f"{actor}.optim.lr_warmup_steps": train.warmup_steps,
        f"{actor}.clip_ratio": train.clip_low,
        f"{actor}.clip_ratio_low": train.clip_low,
        f"{actor}.clip_ratio_high": train.clip_high,
        f"{actor}.loss_agg_mode": train.loss_aggregation,
        f"{actor}.use_kl_loss": train.kl_coef > 0,
        f"{actor}.kl_loss_coef": train.kl_coef,
        f"{actor}.entropy_coeff": 0,
        f"{actor}.ppo_micro_batch_size_per_gpu": train.micro_batch_size,
        f"{actor}.data_loader_seed": train.seed,
        f"{rollout}.n": train.rollouts,
        f"{rollout}.temperature": train.temperature,
        f"{rollout}.seed": train.seed,
        f"{rollout}.tensor_model_parallel_size": train.tensor_parallel,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": train.micro_batch_size,
        f"{rollout}.agent.agent_loop_config_path": str(run_dir / AGENT_LOOPS),
        f"{rollout}.agent.default_agent_loop": "saerl_single_turn",
        # Validate as the evaluation before and after does: at temperature 1. Each row of the file gets one answer.
        f"{rollout}.val_kwargs.do_sample": True,
        f"{rollout}.val_kwargs.temperature": 1.0,
        f"{rollout}.val_kwargs.n": 1,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": train.micro_batch_size,
        "reward.custom_reward_function.path": str(VERL_SIDE / "saerl_reward.py"),
        "reward.custom_reward_function.name": "compute_score",
        "+reward.custom_reward_function.reward_kwargs": {
            "verifier": config.policy.verifier,
            "identity": verifiers.load(config.policy, Path(config.base)).identity,
        },
    }


def _recording_settings(config: RunConfig, engine: Engine, run_dir: Path) -> dict[str, Any]:
    """Checkpoints, metrics, and the record of what was consumed."""
    train = config.train
    contents = ["model", "optimizer", "extra"]
    return {
        "trainer.default_local_dir": str(run_dir / "checkpoints"),
        "trainer.save_freq": train.save_every,
        "trainer.max_actor_ckpt_to_keep": _CHECKPOINTS_KEPT,
        # hf_model: a folder that transformers loads, with no merger in between.
        "actor_rollout_ref.actor.checkpoint.save_contents": [*contents, "hf_model"],
        "actor_rollout_ref.actor.checkpoint.load_contents": contents,
        "trainer.logger": ["console", "file"],
        "trainer.project_name": "saerl",
        "trainer.experiment_name": config.name,
        "trainer.v1.sampler.custom_sampler.path": str(VERL_SIDE / "saerl_replay.py"),
        "trainer.v1.sampler.custom_sampler.name": "RecordingReplayBuffer",
        "+trainer.v1.sampler.sampler_kwargs": {
            "consumed_dir": str(run_dir / "consumed"),
            "validated_dir": str(run_dir / "validated"),
            "poll_interval": _CPU_POLL_SECONDS if engine == "cpu" else _GPU_POLL_SECONDS,
        },
        "trainer.n_gpus_per_node": train.gpus,
        "trainer.nnodes": train.nodes,
        "hydra.run.dir": str(run_dir / "hydra"),
        "hydra.output_subdir": None,
    }


def _cpu_settings(config: RunConfig) -> dict[str, Any]:
    """One process of each kind, float32, nothing that needs a compiler or a kernel of its own."""
    return {
        "trainer.device": "cpu",
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.model.use_remove_padding": False,  # needs flash attention
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision": {
            "param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32",
        },
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile": False,
        "+actor_rollout_ref.ref.fsdp_config.mixed_precision": {
            "param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32",
        },
        "actor_rollout_ref.rollout.name": "saerl_cpu",
        "actor_rollout_ref.rollout.dtype": "float32",
        # The sampler's log-probabilities are the trainer's, to the last digit but one: no forward pass to redo them.
        # (`ppo_kl` then measures that they agree.) Entropy comes with that pass, so it is asked for in the update.
        "algorithm.rollout_correction.bypass_mode": True,
        "actor_rollout_ref.actor.calculate_entropy": True,
        "actor_rollout_ref.rollout.max_num_seqs": 256,
        "+actor_rollout_ref.rollout.agent.agent_loop_manager_class": "saerl_batch_loop.BatchLoopManager",
        "actor_rollout_ref.rollout.free_cache_engine": False,
        "actor_rollout_ref.rollout.agent.num_workers": 1,
        "reward.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "ray_kwargs.ray_init.num_cpus": 10,  # slots for verl's actors, which are idle most of the time
        "+ray_kwargs.ray_init.num_gpus": 1,  # declared for verl's placement groups; nothing uses it
        "+ray_kwargs.ray_init.object_store_memory": _CPU_OBJECT_STORE_BYTES,
        **_own_ray(),
    }


def _gpu_settings(config: RunConfig) -> dict[str, Any]:
    """vLLM rollouts, FSDP with bfloat16 compute over float32 weights."""
    return {
        "trainer.device": "cuda",
        "actor_rollout_ref.model.use_remove_padding": True,
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.dtype": "bfloat16",
        # Several nodes: a Ray cluster that is already there, named by RAY_ADDRESS.
        **(_own_ray() if config.train.nodes == 1 else {}),
    }


def _own_ray() -> dict[str, Any]:
    """A Ray of the job's own, without a dashboard."""
    return {"+ray_kwargs.ray_init.address": "local", "+ray_kwargs.ray_init.include_dashboard": False}
