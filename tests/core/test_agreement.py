from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saerl_core import agreement as core
from saerl_core.locations import resolve
from saerl_core.rl import rollouts

CHATS = [[{"role": "user", "content": text}] for text in
         ("Tom has 5 coins. Tom spends 3. How many coins now?",
          "A bus carries 20 people. 4 get on. How many people now?")]
TEXTS = [["5-3=2;#2", "5+3=8;#8"], ["20+4=24;#24", "20-4=16;#16"]]


@pytest.fixture(scope="module")
def policy() -> rollouts.Policy:
    return rollouts.load_policy(Path(resolve("saerl:toy/lm", Path())), "cpu", "float32")


def true_gradient(policy: rollouts.Policy, chat: Any, text: str) -> np.ndarray:
    """d log p(answer) / d unembedding by autograd, each token's hidden state scaled to length 1: float64 [V, D]."""
    prompt = rollouts.encode_prompts(policy, [chat])[0]
    answer = policy.tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        h_TD = policy.model.base_model(input_ids=torch.tensor([prompt + answer])).last_hidden_state[0]
    head_VD = policy.model.get_output_embeddings().weight.detach()
    total = torch.zeros_like(head_VD, dtype=torch.float64)
    for place, token in enumerate(answer, start=len(prompt) - 1):
        weight = head_VD.clone().requires_grad_(True)
        (weight @ h_TD[place]).log_softmax(0)[token].backward()
        assert weight.grad is not None
        total += weight.grad.double() / h_TD[place].norm().double()
    return total.numpy()


def test_a_pull_is_the_sketch_of_the_gradient_that_autograd_finds(policy: rollouts.Policy) -> None:
    pulls = core.answer_pulls(policy, CHATS, TEXTS)
    assert pulls.shape == (2, 2, core.SKETCH)
    sides = [core._directions(size, torch.device("cpu")).double().numpy()
             for size in policy.model.get_output_embeddings().weight.shape]
    for number, (chat, answers) in enumerate(zip(CHATS, TEXTS, strict=True)):
        for place, text in enumerate(answers):
            sketch = sides[0].T @ true_gradient(policy, chat, text) @ sides[1]
            np.testing.assert_allclose(pulls[number, place], sketch.ravel(), atol=2e-4)


def test_the_sketch_keeps_the_angles_between_gradients(policy: rollouts.Policy) -> None:
    true = np.stack([true_gradient(policy, chat, text).ravel()
                     for chat, answers in zip(CHATS, TEXTS, strict=True) for text in answers])
    sketched = core.answer_pulls(policy, CHATS, TEXTS).reshape(4, -1)
    assert np.abs(np.corrcoef(true) - np.corrcoef(sketched)).max() < 0.15


def test_a_prompt_whose_rewards_do_not_differ_pulls_nowhere() -> None:
    pulls = np.random.default_rng(0).normal(size=(4, 8))
    assert core.pull(pulls, np.ones(4)) is None
    found = core.pull(pulls, np.array([1.0, 0.0, 0.0, 1.0]))
    assert found is not None
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert found @ (pulls[0] + pulls[3] - pulls[1] - pulls[2]) > 0


def test_a_wrong_key_is_the_most_frequent_answer_that_was_not_rewarded() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    assert core.wrong_rewards(["5", "7", "6", "7", None], rewards) == pytest.approx([0, 1, 0, 1, 0])
    assert core.wrong_rewards(["5", None], np.array([1.0, 0.0])) is None


def test_agreement_is_what_a_naive_loop_over_pairs_finds() -> None:
    rng = np.random.default_rng(1)
    pulls, other = rng.normal(size=(2, 40, 6))
    found = core.agreement(other, pulls, neighbours=7)
    for row in range(40):
        cosines = sorted((other[row] @ np.delete(pulls, row, 0).T).tolist(), key=abs)[-7:]
        assert found[row] == pytest.approx(sum(cosines) / sum(map(abs, cosines)), abs=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pulls = np.random.default_rng(2).normal(size=(50, 6))
    pulls /= np.linalg.norm(pulls, axis=1, keepdims=True)
    whole = core.agreement(pulls, pulls, 10)
    monkeypatch.setattr(core, "_BLOCK", 7)
    np.testing.assert_allclose(core.agreement(pulls, pulls, 10), whole, atol=1e-12)


def test_prompts_with_a_wrong_key_disagree_with_their_like() -> None:
    """Four kinds of prompts, each pulling its own way; a tenth of them against it."""
    rng = np.random.default_rng(3)
    kinds = rng.normal(size=(4, 64))
    wrong = rng.random(400) < 0.1
    pulls = kinds[rng.integers(0, 4, 400)] * np.where(wrong, -1, 1)[:, None] + 1.5 * rng.normal(size=(400, 64))
    pulls /= np.linalg.norm(pulls, axis=1, keepdims=True)
    found = core.agreement(pulls, pulls, 30)
    assert (found[wrong] < 0).mean() > 0.95
    assert (found[~wrong] > 0).mean() > 0.95


def test_nobody_else_is_no_agreement() -> None:
    assert core.agreement(np.ones((1, 4)), np.ones((1, 4)), 30).tolist() == [0.0]
