"""verl's FSDP engine, less what teaches nothing: for the CPU, where part of an update is backward passes of zeros.

Where all answers to a prompt are rewarded alike, GRPO's advantage is zero and so is the gradient. A micro-batch of such
answers alone is still read, for verl's metrics, but not differentiated; `saerl_replay` puts them side by side. The sum
of the gradients is the same, with fewer zeros in it.

Registered for the vendor that `saerl_cpu_platform` names; verl's other engines stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

_Engine: Any = FSDPEngineWithLMHead  # verl's decorator hides its type


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cuda", vendor="cpu")
class CpuEngine(_Engine):
    """`FSDPEngineWithLMHead`, faster."""

    def forward_backward_batch(self, data: TensorDict, *args: Any, **settings: Any) -> Any:
        # No loss reads a column of objects (ids and the like), and tensordict copies them cell by cell, several times.
        objects = [name for name, column in data.items() if isinstance(column, NonTensorStack)]
        return super().forward_backward_batch(data.exclude(*objects), *args, **settings)

    @contextmanager
    def _gradient_sync_context(self, *, is_last_micro_batch: bool) -> Iterator[None]:
        self._is_last = is_last_micro_batch
        with super()._gradient_sync_context(is_last_micro_batch=is_last_micro_batch):
            yield

    def forward_step(
        self, micro_batch: Any, loss_function: Any, forward_only: bool
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        # FSDP hands all gradients to the optimizer in the last backward pass, so that one is never left out.
        if forward_only or self._is_last or not _is_advantage_all(loss_function) or _any(micro_batch["advantages"]):
            return super().forward_step(micro_batch, loss_function, forward_only)
        with torch.no_grad():
            loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        return loss.requires_grad_(), output  # a leaf, whose backward pass is empty


def _is_advantage_all(loss_function: Any) -> bool:
    """Whether every term of the loss is a multiple of the advantage: plain PPO without entropy or KL."""
    if not isinstance(loss_function, partial) or loss_function.func is not ppo_loss:
        return False
    config = loss_function.keywords["config"]
    return (
        config.policy_loss.get("loss_mode", "vanilla") == "vanilla"
        and config.entropy_coeff == 0
        and not config.use_kl_loss
    )


def _any(advantages: torch.Tensor) -> bool:
    values = advantages.values() if advantages.is_nested else advantages
    return bool(values.any())
