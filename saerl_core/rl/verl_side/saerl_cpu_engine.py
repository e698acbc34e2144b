"""verl's FSDP engine, less what teaches nothing and what was read before: for the CPU, where that is most of an update.

Where all answers to a prompt are rewarded alike, GRPO's advantage is zero and so is the gradient. A micro-batch of such
answers alone is still read, for verl's metrics, but not differentiated. And a prompt is read once for all of its
answers in a micro-batch (`saerl_shared_prompts`). `saerl_replay` puts side by side what belongs together. The sum of
the gradients is the same, but for its last bits.

Registered for the vendor that `saerl_cpu_platform` names; verl's other engines stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from saerl_shared_prompts import model_inputs, share_prompts
from tensordict import NonTensorStack, TensorDict
from verl.utils import tensordict_utils
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

_Engine: Any = FSDPEngineWithLMHead  # verl's decorator hides its type


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cuda", vendor="cpu")
class CpuEngine(_Engine):
    """`FSDPEngineWithLMHead`, faster."""

    def _build_module(self) -> Any:
        module = super()._build_module()
        shaped_otherwise = self.model_config.use_fused_kernels or self.pad_to_length
        self._shares = not shaped_otherwise and share_prompts(module)
        return module

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self._shares or not micro_batch["prompts"].is_nested:
            return super().prepare_model_inputs(micro_batch)
        _, output_args = super().prepare_model_inputs(_only_answers(micro_batch))
        output_args["input_ids_rmpad_rolled"] = micro_batch["responses"].values()  # these logits are a token ahead
        lengths = (micro_batch[part].offsets().diff() for part in ("prompts", "responses"))
        return model_inputs(micro_batch["input_ids"].values(), *lengths), output_args

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        if not self._shares or not micro_batch["prompts"].is_nested:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        found = super().prepare_model_outputs(output, output_args, _only_answers(micro_batch), logits_processor_func)
        return {name: _behind_prompts(values, micro_batch) for name, values in found.items()}

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


def _only_answers(micro_batch: Any) -> Any:
    """The micro-batch as if there were no prompts, for what verl does with logits once it has them."""
    answers = micro_batch.copy()
    answers["input_ids"] = micro_batch["responses"]
    tensordict_utils.assign_non_tensor(answers, use_remove_padding=True)
    return answers


def _behind_prompts(values: Any, micro_batch: Any) -> torch.Tensor:
    """What was found of the answers' tokens, where verl looks for it: a token earlier in the whole rows.

    Of the prompts' own tokens no loss knows anything; they get zeros.
    """
    offsets = micro_batch["input_ids"].offsets()
    ends, lengths = offsets[1:].tolist(), values.offsets().diff().tolist()
    places = [torch.arange(end - length - 1, end - 1) for end, length in zip(ends, lengths, strict=True)]
    whole = values.values().new_zeros(ends[-1]).index_copy(0, torch.cat(places), values.values())
    return torch.nested.nested_tensor_from_jagged(whole, offsets)


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
