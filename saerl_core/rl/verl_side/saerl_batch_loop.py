"""verl's agent loop for the CPU rollout: a batch of single turns, all at once.

verl runs a coroutine for each answer, which sends three messages to other processes and waits for each: for a small
model that is most of a step. Here the prompts of a batch go to the server in one message, the answers to the verifier
in a second one, and into the queue in a third. The call returns when they are there, so the trainer, which looks into
the queue next, never waits and looks again; and a failure is raised where verl would log it and fill the batch up.

What lands in the queue, and in which order, depends on nothing but the batch: the rows of verl's own
`AgentLoopWorkerTQ`, prompt by prompt, less the columns that nobody reads from there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue
from saerl_agent_loop import GREEDY, SINGLE_TURN, asks_greedily, supported_model_type
from saerl_cpu_rollout import server_name
from saerl_sampling import Answer
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.protocol import DataProto
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

_PER_PROMPT = ("__rollout_n__", "__do_sample__")  # columns with which some of verl's algorithms vary the sampling
_READ_LATER = ("uid", "extra_info", "reward_model", "data_source")
"""Columns of the prompts that verl or SAERL asks the queue for. The prompts have a dozen, and each column of objects
costs some 20 ms a step of 256 rows: tensordict wraps every cell, and an update fetches them all."""


class BatchLoopManager(AgentLoopManagerTQ):
    """Starts the workers below, or verl's own where another agent loop than SAERL's single turn is configured."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.rollout_config.agent.default_agent_loop == SINGLE_TURN:
            self.agent_loop_workers_class: Any = ray.remote(BatchLoopWorker)


class BatchLoopWorker(AgentLoopWorker):
    """Answers, scores and stores whole batches."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        transfer_queue.init()
        self._prompt_builder = create_continuous_token_builder(
            self.tokenizer,
            hf_model_type=supported_model_type(self.tokenizer, self.hf_model_type),
            chat_template_kwargs=self.config.data.get("apply_chat_template_kwargs", {}),
        )
        self._server: Any = None

    async def generate_sequences(self, batch: TensorDict) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Answer every prompt of the batch n times, and put the scored answers into the queue.

        Raises:
            ValueError: the batch asks for sampling that differs from prompt to prompt.
        """
        columns = dict(batch.items())
        validate = bool(_cell(columns.pop("validate", False), 0))
        if varied := [name for name in _PER_PROMPT if name in columns]:
            raise ValueError(f"{varied}: the CPU rollout samples all prompts alike")
        rollout = self.config.actor_rollout_ref.rollout
        n, rule = (rollout.val_kwargs.n, rollout.val_kwargs) if validate else (rollout.n, rollout)
        prompts = [{name: _cell(column, row) for name, column in columns.items()} for row in range(len(batch))]
        rows = [prompt | {"session_id": session} for prompt in prompts for session in range(n)]
        outputs = await self._answer(
            rows, {"temperature": rule.temperature, "top_k": rule.top_k, "top_p": rule.top_p}
        )
        await self._score(rows, outputs)
        partition = "val" if validate else "train"
        await transfer_queue.async_kv_batch_put(
            keys=[f"{row['uid']}_{row['session_id']}_0" for row in rows],
            fields=list_of_dict_to_tensordict([_fields(row, out) for row, out in zip(rows, outputs, strict=True)]),
            tags=[_tag(row, output) for row, output in zip(rows, outputs, strict=True)],
            partition_id=partition,
        )
        await transfer_queue.async_kv_batch_put(
            keys=[prompt["uid"] for prompt in prompts],
            tags=[{"status": "finished"} for _ in prompts],
            partition_id=partition,
        )

    async def _answer(self, rows: Sequence[dict[str, Any]], sampling_params: dict[str, Any]) -> list[AgentLoopOutput]:
        if self._server is None:
            self._server = ray.get_actor(server_name(0))  # the CPU engine has one
        prompts = {row["uid"]: row["raw_prompt"] for row in rows}
        ids_of = {uid: self._prompt_builder.build_initial_tokens(list(chat)) for uid, chat in prompts.items()}
        prompt_ids = [ids_of[row["uid"]] for row in rows]
        answers: dict[int, Answer] = {}
        weights_step = None
        for greedily in (False, True):
            asked = [place for place, row in enumerate(rows) if asks_greedily(row) is greedily]
            if asked:
                found, weights_step = await self._server.answer.remote(
                    [prompt_ids[place] for place in asked], GREEDY if greedily else sampling_params
                )
                answers.update(zip(asked, found, strict=True))
        return [
            AgentLoopOutput(
                prompt_ids=ids,
                response_ids=answer.token_ids,
                response_mask=[1] * len(answer.token_ids),
                response_logprobs=answer.log_probs,
                num_turns=2,
                metrics=AgentLoopMetrics(),
                extra_fields={
                    "min_global_steps": weights_step, "max_global_steps": weights_step,
                    "turn_scores": [], "tool_rewards": [],
                },
            )
            for ids, answer in ((prompt_ids[place], answers[place]) for place in range(len(rows)))
        ]

    async def _score(self, rows: Sequence[dict[str, Any]], outputs: Sequence[AgentLoopOutput]) -> None:
        workers = self.reward_loop_worker_handles
        if workers is None:  # verl scores later, with a reward model
            return
        parts = _reward_request(rows, outputs).split(math.ceil(len(rows) / len(workers)))
        results = await asyncio.gather(
            *(worker.compute_score_batch.remote(part) for worker, part in zip(workers, parts, strict=False))
        )
        for output, result in zip(outputs, (one for part in results for one in part), strict=True):
            output.reward_score = result["reward_score"]
            output.extra_fields["reward_extra_info"] = result["reward_extra_info"]


def _cell(column: Any, row: int) -> Any:
    """One prompt's value of a column: a tensor, a list of objects, or one object for all."""
    if isinstance(column, NonTensorData):
        return column.data
    if isinstance(column, NonTensorStack):
        return column[row].data
    return column[row] if isinstance(column, torch.Tensor) else column


def _reward_request(rows: Sequence[dict[str, Any]], outputs: Sequence[AgentLoopOutput]) -> DataProto:
    """What verl's reward managers read: token ids, prompts padded on the left, answers on the right; all columns."""
    prompts = [torch.tensor(output.prompt_ids) for output in outputs]
    responses = [torch.tensor(output.response_ids) for output in outputs]

    def side_by_side(left: list[torch.Tensor], right: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([
            pad_sequence(left, batch_first=True, padding_side="left"), pad_sequence(right, batch_first=True)
        ], dim=1)

    mask = side_by_side([torch.ones_like(ids) for ids in prompts], [torch.ones_like(ids) for ids in responses])
    tensors = {
        "prompts": pad_sequence(prompts, batch_first=True, padding_side="left"),
        "responses": pad_sequence(responses, batch_first=True),
        "input_ids": side_by_side(prompts, responses),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    columns["__num_turns__"] = [output.num_turns for output in outputs]
    columns["tool_extra_fields"] = [output.extra_fields for output in outputs]
    columns["prompt_len"] = [len(output.prompt_ids) for output in outputs]
    columns["response_len"] = [len(output.response_ids) for output in outputs]
    return DataProto(
        batch=TensorDict(tensors, batch_size=len(rows)),
        non_tensor_batch={name: _objects(values) for name, values in columns.items()},
    )


def _objects(values: list[Any]) -> np.ndarray:
    """An array of these very objects, lists among them."""
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def _fields(row: dict[str, Any], output: AgentLoopOutput) -> dict[str, Any]:
    """One answer's columns in the queue."""
    fields = output.as_dict()
    del fields["metrics"]  # empty: verl's worker reports them, and has none
    ids = torch.cat([fields["prompts"], fields["responses"]])
    return fields | {name: row[name] for name in _READ_LATER} | {
        "num_turns": torch.tensor(fields["num_turns"]),
        "loss_mask": fields["response_mask"],
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
    }


def _tag(row: dict[str, Any], output: AgentLoopOutput) -> dict[str, Any]:
    """What verl's replay buffer and its metrics know of an answer without fetching it."""
    prompt_len, response_len = len(output.prompt_ids), len(output.response_ids)
    return {
        "status": "success",
        "prompt_len": prompt_len,
        "response_len": response_len,
        "seq_len": prompt_len + response_len,
        "global_steps": row["global_steps"],
        "min_global_steps": output.extra_fields["min_global_steps"],
        "max_global_steps": output.extra_fields["max_global_steps"],
    }
