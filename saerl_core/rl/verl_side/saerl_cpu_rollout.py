"""Rollouts on the CPU: a Ray actor that samples whole batches with transformers.

Three parts, as verl wants them: the server (generates), the replica (starts the server), and the sender, which lives
in the training worker and ships new weights to the server through Ray's object store.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from saerl_sampling import Answer, SamplingRule, answer_seed, sample_answers, stop_ids_of
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


@dataclass(frozen=True)
class ServerSettings:
    """What the server takes from verl's rollout config."""

    prompt_length: int
    response_length: int
    max_num_seqs: int
    seed: int
    trust_remote_code: bool


class CpuRolloutServer:
    """Answers verl's generate calls. One per replica."""

    def __init__(self, model_path: str, settings: ServerSettings) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        load = {"trust_remote_code": settings.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(model_path, **load)
        model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, **load)
        self._model = model.eval().requires_grad_(False)
        self._stop_ids = stop_ids_of(model, tokenizer)
        self._pad_id = tokenizer.pad_token_id or 0
        self._settings = settings
        self._step = 0
        self._asked: Counter[tuple[int, ...]] = Counter()  # answers already asked for, per prompt, with these weights

    async def answer(
        self, prompts: Sequence[Sequence[int]], sampling_params: dict[str, Any], max_tokens: int | None = None
    ) -> tuple[list[Answer], int]:
        """Sample one answer to each of R prompts, equal ones among them.

        Returns:
            R answers, and the step whose weights gave them.
        """
        temperature = sampling_params.get("temperature")
        rule = SamplingRule(
            temperature=1.0 if temperature is None else float(temperature),
            top_k=int(sampling_params.get("top_k") or -1),
            top_p=float(sampling_params.get("top_p") or 1.0),
        )
        seeds = [0 if rule.greedy else self._next_seed(tuple(prompt)) for prompt in prompts]
        answers: dict[int, Answer] = {}
        in_order_of_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(prompts), self._settings.max_num_seqs):
            rows = in_order_of_length[start : start + self._settings.max_num_seqs]
            sampled = sample_answers(
                self._model,
                [prompts[row] for row in rows],
                [seeds[row] for row in rows],
                rule,
                max_tokens=max_tokens or self._settings.response_length,
                stop_ids=self._stop_ids,
                pad_id=self._pad_id,
            )
            answers.update(zip(rows, sampled, strict=True))
        return [answers[row] for row in range(len(prompts))], self._step

    async def generate(
        self, prompt_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """One answer, for agent loops of verl's that ask for them one by one."""
        room = self._settings.prompt_length + self._settings.response_length - len(prompt_ids)
        wanted = sampling_params.get("max_tokens") or sampling_params.get("max_new_tokens")
        max_tokens = max(1, min(wanted or self._settings.response_length, room))
        (answer,), step = await self.answer([prompt_ids], sampling_params, max_tokens)
        return TokenOutput(
            token_ids=answer.token_ids,
            log_probs=answer.log_probs,
            stop_reason="completed" if answer.finished else "length",
            num_preempted=0,
            extra_fields={"global_steps": step},
        )

    def _next_seed(self, prompt: tuple[int, ...]) -> int:
        """Which of a prompt's answers is asked for first does not matter: together they are the same."""
        self._asked[prompt] += 1
        return answer_seed(self._settings.seed, (self._step, *prompt), self._asked[prompt] - 1)

    async def load_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None = None) -> None:
        """Take over the trainer's weights, all of them.

        Raises:
            ValueError: a weight is missing or unknown, so that the rollouts would be another model's.
        """
        own = self._model.state_dict()
        unknown = weights.keys() - own.keys()
        missing = {name for name, _ in self._model.named_parameters()} - weights.keys()
        if unknown or missing:
            raise ValueError(f"weight sync: unknown {sorted(unknown)[:3]}, missing {sorted(missing)[:3]}")
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)
        if global_steps is not None:
            self._step = global_steps
        self._asked.clear()

    async def set_global_steps(self, global_steps: int) -> None:
        self._step = global_steps

    async def ready(self) -> bool:
        return True

    async def _nothing(self, *_: Any, **__: Any) -> None:
        """verl's other controls (sleep, wake, profile) manage GPU memory, of which there is none."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing
    abort_all_requests = resume_generation = start_profile = stop_profile = _nothing


class CpuRolloutReplica(RolloutReplica):
    """Starts one server actor."""

    async def launch_servers(self) -> None:
        settings = ServerSettings(
            prompt_length=self.config.prompt_length,
            response_length=self.config.response_length,
            max_num_seqs=self.config.max_num_seqs,
            seed=self.config.seed,
            trust_remote_code=bool(_field(self.model_config, "trust_remote_code")),
        )
        actor: Any = ray.remote(CpuRolloutServer)
        options = {"name": server_name(self.replica_rank), "num_cpus": 0, "max_concurrency": self.max_concurrency}
        server = actor.options(**options).remote(_field(self.model_config, "path"), settings)
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"cpu-{self.replica_rank}"  # an id: nothing listens


class CpuWeightSender(BaseRollout):
    """The rollout's end in the training worker."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        ranks = (
            self.config.tensor_model_parallel_size
            * self.config.data_parallel_size
            * self.config.pipeline_model_parallel_size
        )
        self._replica_rank = int(os.environ["RANK"]) // ranks
        self._server: Any = None

    async def resume(self, tags: list[str]) -> None:
        return None

    async def release(self) -> None:
        return None

    async def update_weights(
        self, weights: Any, wire_format: str = "named_tensors", global_steps: int | None = None, **_: Any
    ) -> None:
        """Send all weights to the server and wait until it has them."""
        if wire_format != "named_tensors":
            raise ValueError(f"weight sync: the CPU rollout takes named tensors, not {wire_format!r}")
        if self._server is None:
            self._server = ray.get_actor(server_name(self._replica_rank))
        copied = {name: tensor.detach().float().cpu().clone() for name, tensor in weights}
        await self._server.load_weights.remote(copied, global_steps)


def server_name(replica_rank: int) -> str:
    """Under which Ray knows a replica's server."""
    return f"saerl_cpu_server_{replica_rank}"


def _field(config: Any, name: str) -> Any:
    """A field of verl's model config, which is a dataclass or an omegaconf node depending on the caller."""
    return getattr(config, name) if hasattr(config, name) else config[name]
