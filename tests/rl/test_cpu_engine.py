"""What SAERL puts into verl on the CPU: the rollout server, the rows of a batch, log-probabilities in one piece, and
updates without what teaches nothing or was read before."""

from __future__ import annotations

import asyncio
import importlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
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


@pytest.fixture
def engine(tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The CPU engine around a model that is there, without verl's processes."""
    from saerl_cpu_engine import CpuEngine
    from saerl_shared_prompts import share_prompts
    from transformers import AutoModelForCausalLM
    from verl.utils import torch_functional
    from verl.workers.engine.fsdp import transformer_impl

    for name in ("get_device_id", "get_device_name"):  # there is no platform in this process
        monkeypatch.setattr(transformer_impl, name, lambda: "cpu")
    engine: Any = object.__new__(CpuEngine)
    engine.module = AutoModelForCausalLM.from_pretrained(tiny_policy_dir, dtype=torch.float32)
    engine.pad_to_length, engine._autocast_dtype, engine._is_last = False, torch.float32, False
    engine.use_ulysses_sp = False
    engine._shares = share_prompts(engine.module)
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    engine.compute_entropy_from_logits = torch_functional.entropy_from_logits
    engine.get_data_parallel_group = lambda: None
    return engine


def _micro_batch(advantages: list[float]) -> Any:
    """Answers of three, two and one tokens, the first and the last to one prompt, each with one advantage for all of
    its tokens, as verl hands them on."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils

    prompts, responses = [[65, 66, 67], [70, 71], [65, 66, 67]], [[72, 73, 74], [75, 76], [77]]

    def nested(rows: list[list[Any]], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)

    whole = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    ones = [[1] * len(response) for response in responses]
    batch = TensorDict({
        "prompts": nested(prompts), "responses": nested(responses), "input_ids": nested(whole),
        "position_ids": nested([list(range(len(row))) for row in whole]),
        "response_mask": nested(ones), "loss_mask": nested(ones),
        "old_log_probs": nested([[-1.0] * len(row) for row in responses], torch.float32),
        "advantages": nested([[value] * len(row) for value, row in zip(advantages, responses, strict=True)],
                             torch.float32),
    }, batch_size=3)
    tensordict_utils.assign_non_tensor(batch, temperature=0.7, use_remove_padding=False, calculate_entropy=True,
                                       dp_size=1, batch_num_tokens=6, global_batch_size=3)
    return batch


def _step(engine: Any, advantages: list[float], **loss_settings: Any) -> tuple[list[torch.Tensor | None], Any]:
    """One micro-batch, forward and backward: the gradients that it leaves, and verl's metrics."""
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    config = FSDPActorConfig(rollout_n=2, ppo_micro_batch_size_per_gpu=2, **loss_settings)
    engine.module.zero_grad()
    loss, output = engine.forward_step(_micro_batch(advantages), partial(ppo_loss, config=config), forward_only=False)
    loss.backward()
    metrics = {name: torch.as_tensor(getattr(value, "values", value)) for name, value in output["metrics"].items()}
    metrics["loss"] = torch.tensor(output["loss"])
    return [parameter.grad for parameter in engine.module.parameters()], metrics


@pytest.mark.parametrize("settings", [{}, {"entropy_coeff": 0.01}])
def test_an_update_with_shared_prompts_is_verls_own(engine: Any, settings: dict[str, Any]) -> None:
    assert engine._shares
    shared = _step(engine, [1.0, -0.5, 0.3], **settings)
    engine._shares = False  # verl's own way, with padding
    engine.module.set_attn_implementation("sdpa")
    torch.testing.assert_close(shared, _step(engine, [1.0, -0.5, 0.3], **settings))


def test_answers_without_an_advantage_are_read_but_not_differentiated(engine: Any) -> None:
    skipped, seen = _step(engine, [0.0, 0.0, 0.0])
    assert all(gradient is None for gradient in skipped)
    engine._is_last = True  # verl's own way
    gradients, metrics = _step(engine, [0.0, 0.0, 0.0])
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    torch.testing.assert_close(seen, metrics, rtol=0, atol=0)


@pytest.mark.parametrize(("advantages", "settings"), [
    ([0.0, 0.5, 0.0], {}),
    ([0.0, 0.0, 0.0], {"entropy_coeff": 0.01}),
])
def test_what_teaches_anything_is_differentiated(
    engine: Any, advantages: list[float], settings: dict[str, Any]
) -> None:
    gradients, _ = _step(engine, advantages, **settings)
    assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_other_losses_of_verls_are_left_alone() -> None:
    from saerl_cpu_engine import _is_advantage_all
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig
    from verl.workers.utils.losses import ppo_loss, value_loss

    def config(**settings: Any) -> Any:
        return FSDPActorConfig(rollout_n=2, ppo_micro_batch_size_per_gpu=2, **settings)

    assert _is_advantage_all(partial(ppo_loss, config=config()))
    assert not _is_advantage_all(partial(ppo_loss, config=config(use_kl_loss=True)))
    assert not _is_advantage_all(partial(ppo_loss, config=config(policy_loss=PolicyLossConfig(loss_mode="kl_cov"))))
    assert not _is_advantage_all(partial(value_loss, config=config()))
    assert not _is_advantage_all(ppo_loss)


def test_answers_come_to_training_by_what_they_teach_prompt_by_prompt() -> None:
    from saerl_replay import _training_order

    answers = [({"index": 0}, 1.0), ({"index": 1}, 1.0), ({"index": 2}, 0.0), ({"index": 0}, 0.0), ({"index": 1}, 1.0),
               ({"index": 3}, 0.0), ({"index": 3}, 1.0)]
    batch = SimpleNamespace(keys=["a_0_0", "b_1_0", "c_0_0", "a_1_0", "b_0_0", "d_0_0", "d_1_0"],
                            tags=[{"seq_len": length} for length in (5, 7, 7, 9, 3, 9, 9)])
    order = _training_order(batch, answers)
    assert [batch.keys[place] for place in order] == ["c_0_0", "b_0_0", "b_1_0", "d_0_0", "d_1_0", "a_0_0", "a_1_0"]


def test_a_batch_for_one_worker_is_not_balanced_and_stays_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils import seqlen_balancing

    monkeypatch.setattr(seqlen_balancing, "karmarkar_karp", seqlen_balancing.karmarkar_karp)  # put back at the end
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    platform = importlib.import_module("saerl_cpu_platform")
    lengths = [5, 1, 4, 4, 2, 9]
    before = {parts: seqlen_balancing.get_seqlen_balanced_partitions(lengths, parts, True) for parts in (1, 2, 3)}
    platform._balance_nothing_over_one_worker()
    assert before == {
        parts: seqlen_balancing.get_seqlen_balanced_partitions(lengths, parts, True) for parts in (1, 2, 3)
    }
    assert before[1] == [list(range(6))]
