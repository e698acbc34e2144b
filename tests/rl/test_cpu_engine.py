"""What SAERL puts into verl on the CPU: the rollout server, the rows of a batch, and log-probabilities in one piece."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed (pip install 'saerl[verl]')")

PROMPTS = [[65, 66, 67], [70, 71, 72, 73], [80], [65, 66, 67]]
ONE = {"temperature": 1.0, "top_k": -1, "top_p": 1.0}


def _server(policy_dir: Path, max_num_seqs: int = 256) -> Any:
    from saerl_cpu_rollout import CpuRolloutServer, ServerSettings

    return CpuRolloutServer(
        str(policy_dir),
        ServerSettings(
            prompt_length=16, response_length=6, max_num_seqs=max_num_seqs, seed=0, trust_remote_code=False
        ),
    )


def _tokens(server: Any, prompts: list[list[int]]) -> list[list[int]]:
    answers, _ = asyncio.run(server.answer(prompts, ONE))
    return [answer.token_ids for answer in answers]


def test_answers_do_not_depend_on_how_many_are_sampled_at_once(tiny_policy_dir: Path) -> None:
    together = _tokens(_server(tiny_policy_dir), PROMPTS)
    assert together == _tokens(_server(tiny_policy_dir, max_num_seqs=1), PROMPTS)
    assert together[0] != together[3]  # the same prompt again is answered again


def test_a_prompts_answers_are_the_same_in_every_order_and_one_by_one(tiny_policy_dir: Path) -> None:
    together = _tokens(_server(tiny_policy_dir), PROMPTS)
    assert _tokens(_server(tiny_policy_dir), PROMPTS[1:])[:2] == together[1:3]

    async def one_by_one(server: Any) -> list[list[int]]:
        return [(await server.generate(prompt, ONE, "request")).token_ids for prompt in PROMPTS]

    assert asyncio.run(one_by_one(_server(tiny_policy_dir))) == together


def test_new_weights_mean_new_answers_and_all_of_them_must_come(tiny_policy_dir: Path) -> None:
    server = _server(tiny_policy_dir)
    weights = {name: tensor.clone() for name, tensor in server._model.state_dict().items()}
    before = _tokens(server, PROMPTS)
    asyncio.run(server.load_weights(weights, global_steps=1))
    assert _tokens(server, PROMPTS) != before  # another step, other luck
    weights.popitem()
    with pytest.raises(ValueError, match="missing"):
        asyncio.run(server.load_weights(weights, global_steps=2))


def test_verls_reward_manager_reads_each_answer_and_its_row(tiny_policy_dir: Path) -> None:
    from omegaconf import OmegaConf
    from saerl_batch_loop import _reward_request
    from transformers import AutoTokenizer
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_policy_dir)
    texts = ["#7", "no idea #12", "#1"]
    rows = [
        {"data_source": "sums", "reward_model": {"ground_truth": str(place)}, "extra_info": {"id": f"p{place}"},
         "raw_prompt": [{"role": "user", "content": "?"}]}
        for place in range(3)
    ]
    outputs = [
        AgentLoopOutput(
            prompt_ids=list(range(60, 61 + place)), response_ids=tokenizer.encode(text), num_turns=2,
            response_mask=[1] * len(tokenizer.encode(text)), metrics=AgentLoopMetrics(), extra_fields={},
        )
        for place, text in enumerate(texts)
    ]
    seen: list[tuple[str, str, str]] = []

    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
        seen.append((solution_str, ground_truth, extra_info["id"]))
        return 1.0

    request = _reward_request(rows, outputs)

    async def judge() -> None:
        manager = NaiveRewardManager(OmegaConf.create(), tokenizer, compute_score)
        for place in range(3):
            one: Any = request[place : place + 1]
            await manager.run_single(one)

    asyncio.run(judge())
    assert seen == [("#7", "0", "p0"), ("no idea #12", "1", "p1"), ("#1", "2", "p2")]


def test_log_probabilities_and_their_gradient_are_those_of_verls_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils import torch_functional

    loop: Any = torch_functional.logprobs_from_logits_v2
    monkeypatch.setattr(torch_functional, "logprobs_from_logits_v2", loop)  # put back at the end
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    importlib.import_module("saerl_cpu_platform")
    at_once: Any = torch_functional.logprobs_from_logits_v2
    assert at_once is not loop
    logits_NV = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 5
    labels_N = torch.arange(50) % 30
    results = []
    for function in (loop, at_once):
        own_NV = logits_NV.clone().requires_grad_()
        log_probs_N = function(own_NV, labels_N)
        log_probs_N.square().sum().backward()
        results.append((log_probs_N.detach(), own_NV.grad))
    torch.testing.assert_close(results[0], results[1])
