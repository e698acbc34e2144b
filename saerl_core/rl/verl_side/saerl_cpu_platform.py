"""A CPU platform for verl, which has none built in: loaded by verl itself, in its driver and in every Ray worker.

`VERL_USE_EXTERNAL_MODULES=saerl_cpu_platform` makes verl import this file; `VERL_PLATFORM=cpu` selects what it
registers. verl asks a platform for a device module in the style of `torch.cuda`, for the name of a collective backend
and for a Ray resource: here plain CPU tensors, gloo, and a "GPU" that the launcher declares to Ray without there being
one. With `VERL_ENGINE_DEVICE=cuda` verl takes its FSDP engine, which runs on the CPU as it is.
"""

from __future__ import annotations

import types
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch._C._distributed_c10d import HashStore  # torch.distributed has it, without saying so to type checkers
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import seqlen_balancing, torch_functional
from verl.workers.rollout import base as rollout_base
from verl.workers.rollout.replica import RolloutReplicaRegistry

ROLLOUT = "saerl_cpu"


class _CpuDeviceModule(types.ModuleType):
    """`torch.cpu` with the rest of what verl calls on `torch.cuda`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def is_available(self) -> bool:
        """False in verl's sense: there is no accelerator."""
        return False

    def get_device_name(self, *_: Any) -> str:
        return "CPU"  # the name that verl's FLOPs counter knows

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return 0, 0

    def _zero(self, *_: Any, **__: Any) -> int:
        return 0

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = _zero
    empty_cache = synchronize = set_device = reset_peak_memory_stats = ipc_collect = _nothing

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)


_DEVICE_MODULE = _CpuDeviceModule("torch_cpu_as_accelerator")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """One device, which is the CPU."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"  # verl hands it to `tensor.to`

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        return "GPU"  # verl counts only GPUs and NPUs when it checks that Ray has enough

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None


def _join_without_rendezvous() -> None:
    """Let the one worker of this engine form its process group by itself.

    torch's rendezvous would listen on every interface of the machine. And verl asks for "cpu:gloo,<device>:<backend>",
    which torch refuses when both name the CPU.
    """
    original = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if backend == "cpu:gloo,cpu:gloo":
            backend = "cpu:gloo"
        if kwargs.get("world_size") == 1 and kwargs.get("init_method") is None:
            kwargs["store"] = HashStore()
        return original(backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def _take_log_probs_at_once() -> None:
    """Without flash attention verl loops over the tokens in Python, forward and backward: most of an update."""

    def log_probs_of(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        return logits_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1) - logits_NV.logsumexp(-1)

    torch_functional.logprobs_from_logits_v2 = log_probs_of


def _balance_nothing_over_one_worker() -> None:
    """verl sorts a batch into parts of equal work even where there is one part, and takes longest then."""
    original = seqlen_balancing.karmarkar_karp

    def karmarkar_karp(seqlen_list: list[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
        if k_partitions == 1:
            return [list(range(len(seqlen_list)))]
        return original(seqlen_list, k_partitions, equal_size)

    seqlen_balancing.karmarkar_karp = karmarkar_karp


def _load_replica() -> Any:
    from saerl_cpu_rollout import CpuRolloutReplica

    return CpuRolloutReplica


_join_without_rendezvous()
_take_log_probs_at_once()
_balance_nothing_over_one_worker()
RolloutReplicaRegistry.register(ROLLOUT, _load_replica)
rollout_base._ROLLOUT_REGISTRY[ROLLOUT, "async"] = "saerl_cpu_rollout.CpuWeightSender"
