"""Rollouts on the CPU: a Ray actor that gathers requests into batches and samples them with transformers.

Three parts, as verl wants them: the server (generates), the replica (starts the server), and the sender, which lives
in the training worker and ships new weights to the server through Ray's object store.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from saerl_sampling import Answer, SamplingRule, answer_seed, sample_answers, stop_ids_of
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

_QUIET_SECONDS = 0.05  # a batch that is not full begins once no request has arrived for so long


@dataclass(frozen=True)
class ServerSettings:
    """What the server takes from verl's rollout config."""

    prompt_length: int
    response_length: int
    max_num_seqs: int
    seed: int
    trust_remote_code: bool


@dataclass
class _Request:
    prompt: Sequence[int]
    rule: SamplingRule
    max_tokens: int
    seed: int
    reply: asyncio.Future[TokenOutput]


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
        self._waiting: list[_Request] = []
        self._arrived = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def generate(
        self, prompt_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """Sample one answer. Which of a prompt's answers arrives first does not matter: together they are the same."""
        prompt = tuple(prompt_ids)
        room = self._settings.prompt_length + self._settings.response_length - len(prompt)
        wanted = sampling_params.get("max_tokens") or sampling_params.get("max_new_tokens")
        temperature = sampling_params.get("temperature")
        request = _Request(
            prompt=prompt,
            rule=SamplingRule(
                temperature=1.0 if temperature is None else float(temperature),
                top_k=int(sampling_params.get("top_k") or -1),
                top_p=float(sampling_params.get("top_p") or 1.0),
            ),
            max_tokens=max(1, min(wanted or self._settings.response_length, room)),
            seed=answer_seed(self._settings.seed, (self._step, *prompt), self._asked[prompt]),
            reply=asyncio.get_running_loop().create_future(),
        )
        self._asked[prompt] += temperature != 0  # a greedy answer draws nothing
        self._waiting.append(request)
        self._arrived.set()
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return await request.reply

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            await self._until_full_or_quiet()
            requests, self._waiting = self._waiting, []
            self._arrived.clear()
            for batch in _batches(requests, self._settings.max_num_seqs):
                await self._answer(batch)

    async def _until_full_or_quiet(self) -> None:
        seen = -1
        while seen < len(self._waiting) < self._settings.max_num_seqs:
            seen = len(self._waiting)
            await asyncio.sleep(_QUIET_SECONDS)

    async def _answer(self, batch: list[_Request]) -> None:
        try:
            answers = await asyncio.to_thread(self._sample, batch)
        except Exception as error:  # verl reports it; without a reply it would wait for ever
            for request in batch:
                request.reply.set_exception(error)
            return
        for request, answer in zip(batch, answers, strict=True):
            request.reply.set_result(
                TokenOutput(
                    token_ids=answer.token_ids,
                    log_probs=answer.log_probs,
                    stop_reason="completed" if answer.finished else "length",
                    num_preempted=0,
                    extra_fields={"global_steps": self._step},
                )
            )

    def _sample(self, batch: list[_Request]) -> list[Answer]:
        return sample_answers(
            self._model,
            [request.prompt for request in batch],
            [request.seed for request in batch],
            batch[0].rule,
            max_tokens=batch[0].max_tokens,
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
        )

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


def _batches(requests: list[_Request], limit: int) -> Iterator[list[_Request]]:
    """Requests that can be sampled together: same rule, same length limit, at most `limit` of them, alike in length."""
    alike: defaultdict[tuple[SamplingRule, int], list[_Request]] = defaultdict(list)
    for request in requests:
        alike[request.rule, request.max_tokens].append(request)
    for group in alike.values():
        group.sort(key=lambda request: (len(request.prompt), request.prompt))
        for start in range(0, len(group), limit):
            yield group[start : start + limit]


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
        options = {"name": _server_name(self.replica_rank), "num_cpus": 0, "max_concurrency": self.max_concurrency}
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
            self._server = ray.get_actor(_server_name(self._replica_rank))
        copied = {name: tensor.detach().float().cpu().clone() for name, tensor in weights}
        await self._server.load_weights.remote(copied, global_steps)


def _server_name(replica_rank: int) -> str:
    return f"saerl_cpu_server_{replica_rank}"


def _field(config: Any, name: str) -> Any:
    """A field of verl's model config, which is a dataclass or an omegaconf node depending on the caller."""
    return getattr(config, name) if hasattr(config, name) else config[name]
