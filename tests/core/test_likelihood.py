from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_core import likelihood
from saerl_core.rl import rollouts
from tests.rl.tiny import save_tiny_policy

CHATS = [[{"role": "user", "content": text}] for text in ("2 + 3 = ?", "How many?", "x" * 70, "one two three four")]
ANSWERS = ["5", "#17", "1/2", "12,650"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> rollouts.Policy:
    return rollouts.load_policy(save_tiny_policy(tmp_path_factory.mktemp("policy")))


def naive(policy: rollouts.Policy, chat: list[dict[str, str]], answer: str) -> tuple[float, float]:
    """One prompt at a time, one token at a time."""
    prompt = rollouts.encode_prompts(policy, [chat])[0]
    ids = prompt + policy.tokenizer.encode(answer, add_special_tokens=False)
    with torch.no_grad():
        log_p = policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nll = [-float(log_p[place - 1, ids[place]]) for place in range(1, len(ids))]
    return float(np.mean(nll[: len(prompt) - 1])), float(np.mean(nll[len(prompt) - 1 :]))


@pytest.mark.parametrize("budget", [1, 200, 100_000])
def test_likelihoods_equal_a_loop_over_single_tokens(policy: rollouts.Policy, budget: int,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_TOKENS_PER_BATCH", budget)
    prompt_nll, answer_nll = likelihood.nll(policy, CHATS, ANSWERS)
    for row, (chat, answer) in enumerate(zip(CHATS, ANSWERS, strict=True)):
        assert (prompt_nll[row], answer_nll[row]) == pytest.approx(naive(policy, chat, answer), abs=1e-5)


def test_progress_ends_at_all_prompts(policy: rollouts.Policy) -> None:
    told: list[tuple[int, int]] = []
    likelihood.nll(policy, CHATS, ANSWERS, lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)


@given(st.text("0123456789./\\{}-abc", max_size=12), st.integers(0, 2**63))
def test_a_wrong_answer_differs_in_one_digit_or_is_none(answer: str, seed: int) -> None:
    wrong = likelihood.wrong_answer(answer, seed)
    if wrong is None:
        assert not any(char.isdigit() for char in answer)
        return
    changed = [(a, b) for a, b in zip(answer, wrong, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][1] in "123456789"


