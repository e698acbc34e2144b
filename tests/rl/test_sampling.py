"""The sampler agrees with transformers' greedy search and with the model's own log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saerl_core.rl.rollouts import Policy, sample_texts
from saerl_core.rl.verl_side.saerl_sampling import (
    Answer,
    SamplingRule,
    answer_seed,
    sample_answers,
    stop_ids_of,
    truncate,
)

PROMPTS = [[65, 66, 67], [70, 71, 72, 73, 74, 75, 76], [80], [65, 66, 67], [90, 91]]


def _sample(
    policy: Policy,
    prompts: list[list[int]],
    rule: SamplingRule,
    max_tokens: int = 24,
    stop_ids: frozenset[int] = frozenset(),
    seed: int = 0,
) -> list[Answer]:
    seeds = [answer_seed(seed, prompt, sample) for sample, prompt in enumerate(prompts)]
    return sample_answers(
        policy.model, prompts, seeds, rule, max_tokens=max_tokens, stop_ids=stop_ids or policy.stop_ids, pad_id=0
    )


def _naive_log_probs(policy: Policy, prompt: list[int], answer: list[int], rule: SamplingRule) -> list[float]:
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    temperature = 1.0 if rule.greedy else rule.temperature
    log_probs = truncate(logits / temperature, rule).log_softmax(-1)
    return log_probs.gather(1, torch.tensor(answer)[:, None]).squeeze(1).tolist()


def test_greedy_equals_generate(tiny_policy: Policy) -> None:
    stop_ids = _frequent_tokens(tiny_policy)
    answers = _sample(tiny_policy, PROMPTS, SamplingRule(temperature=0), stop_ids=stop_ids)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = tiny_policy.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=24, eos_token_id=sorted(stop_ids),
        )[0, len(prompt) :].tolist()
        assert answer.token_ids == expected
        assert answer.finished == (expected[-1] in stop_ids)


@pytest.mark.parametrize(
    "rule",
    [
        SamplingRule(),
        SamplingRule(temperature=0),
        SamplingRule(temperature=0.7),
        SamplingRule(top_k=5),
        SamplingRule(top_p=0.8),
        SamplingRule(temperature=1.5, top_k=40, top_p=0.9),
    ],
)
def test_log_probs_equal_those_of_a_full_forward_pass(tiny_policy: Policy, rule: SamplingRule) -> None:
    for prompt, answer in zip(PROMPTS, _sample(tiny_policy, PROMPTS, rule), strict=True):
        assert answer.log_probs == pytest.approx(
            _naive_log_probs(tiny_policy, prompt, answer.token_ids, rule), abs=1e-4
        )


def test_an_answer_does_not_depend_on_its_batch(tiny_policy: Policy) -> None:
    stop_ids = _frequent_tokens(tiny_policy)  # rows finish at different times, so the batch is compacted
    together = _sample(tiny_policy, PROMPTS, SamplingRule(), stop_ids=stop_ids)
    lengths = {len(answer.token_ids) for answer in together}
    assert len(lengths) > 1
    for sample, prompt in enumerate(PROMPTS):
        alone = sample_answers(
            tiny_policy.model, [prompt], [answer_seed(0, prompt, sample)], SamplingRule(),
            max_tokens=24, stop_ids=stop_ids, pad_id=0,
        )[0]
        assert alone.token_ids == together[sample].token_ids
        assert alone.log_probs == pytest.approx(together[sample].log_probs, abs=1e-4)


def test_a_seed_gives_the_same_answers_whatever_else_ran(tiny_policy: Policy) -> None:
    first = _sample(tiny_policy, PROMPTS, SamplingRule(), seed=3)
    torch.manual_seed(99)
    torch.rand(1000)
    assert _sample(tiny_policy, PROMPTS, SamplingRule(), seed=3) == first
    assert _sample(tiny_policy, PROMPTS, SamplingRule(), seed=4) != first


def test_samples_follow_the_models_distribution(tiny_policy: Policy) -> None:
    prompt, draws = [65, 66, 67], 4000
    answers = sample_answers(
        tiny_policy.model, [prompt] * draws, [answer_seed(1, prompt, i) for i in range(draws)], SamplingRule(),
        max_tokens=1, stop_ids=frozenset(), pad_id=0,
    )
    counts = np.bincount([answer.token_ids[0] for answer in answers], minlength=tiny_policy.model.config.vocab_size)
    with torch.no_grad():
        probs = tiny_policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
    expected = probs * draws
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(probs) - 1
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_top_k_never_draws_another_token(tiny_policy: Policy) -> None:
    prompt = [65]
    with torch.no_grad():
        best = set(tiny_policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].topk(3).indices.tolist())
    answers = sample_answers(
        tiny_policy.model, [prompt] * 200, list(range(200)), SamplingRule(top_k=3),
        max_tokens=1, stop_ids=frozenset(), pad_id=0,
    )
    assert {answer.token_ids[0] for answer in answers} == best


def test_texts_come_back_in_the_callers_order(tiny_policy: Policy) -> None:
    chats = [[{"role": "user", "content": "x" * length}] for length in (30, 2, 17, 5)]
    texts = sample_texts(tiny_policy, chats, samples=2, temperature=1, max_response_tokens=6, seed=0)
    small = sample_texts(
        tiny_policy, chats[::-1], samples=2, temperature=1, max_response_tokens=6, seed=0, tokens_per_batch=1
    )
    assert texts == small[::-1]


def test_the_model_attends_as_before_once_the_answers_are_sampled(tiny_policy: Policy) -> None:
    before = tiny_policy.model.config._attn_implementation
    _sample(tiny_policy, PROMPTS, SamplingRule())
    assert tiny_policy.model.config._attn_implementation == before == "sdpa"


def test_stop_tokens_come_from_model_and_tokenizer(tiny_policy: Policy) -> None:
    assert stop_ids_of(tiny_policy.model, tiny_policy.tokenizer) == {tiny_policy.tokenizer.eos_token_id}


def _frequent_tokens(policy: Policy) -> frozenset[int]:
    """Tokens that an untrained model is likely to draw within a few steps."""
    answers = _sample(policy, PROMPTS, SamplingRule(temperature=0), stop_ids=frozenset({10**6}))
    sampled = _sample(policy, PROMPTS, SamplingRule(), stop_ids=frozenset({10**6}))
    return frozenset(answer.token_ids[5] for answer in answers[:2]) | {a.token_ids[6] for a in sampled[1:3]}
