"""Answers that share a prompt are read as if each had its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

pytest.importorskip("verl", reason="verl is not installed (pip install 'saerl[verl]')")

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}
ROWS = [([3, 4, 5, 6], [7, 8, 9]), ([10], [11, 12]), ([3, 4, 5, 6], [8]), ([10], [13, 14, 15, 16, 17])]


def _model(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | settings)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def _shared_log_probs(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    from saerl_shared_prompts import model_inputs

    ids = torch.tensor([token for prompt, answer in rows for token in prompt + answer])
    prompt_lengths, answer_lengths = (torch.tensor([len(row[part]) for row in rows]) for part in (0, 1))
    logits_SV = model(**model_inputs(ids, prompt_lengths, answer_lengths)).logits[0]
    return logits_SV.log_softmax(-1)[range(len(logits_SV)), [token for _, answer in rows for token in answer]]


def _alone_log_probs(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    found = []
    for prompt, answer in rows:
        logits_AV = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found.append(logits_AV.log_softmax(-1)[range(len(answer)), answer])
    return torch.cat(found)


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama", "Gemma"])
def test_log_probabilities_and_gradients_are_those_of_each_answer_behind_its_own_prompt(family: str) -> None:
    from saerl_shared_prompts import share_prompts

    results = []
    for shared in (False, True):
        model = _model(family)
        if shared:
            assert share_prompts(model)
        log_probs = (_shared_log_probs if shared else _alone_log_probs)(model, ROWS)
        (log_probs * torch.arange(1, len(log_probs) + 1)).sum().backward()
        results.append((log_probs.detach(), {name: weight.grad for name, weight in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0])


def test_an_answer_sees_nothing_of_the_others() -> None:
    from saerl_shared_prompts import share_prompts

    model = _model("Qwen2")
    assert share_prompts(model)
    together, alone = _shared_log_probs(model, ROWS), _shared_log_probs(model, ROWS[:1])
    torch.testing.assert_close(together[:3], alone)
    torch.testing.assert_close(_alone_log_probs(model, ROWS), together)  # the switched model still reads whole rows


def test_equal_micro_batches_have_equal_gradients_to_the_bit() -> None:
    from saerl_shared_prompts import share_prompts

    model = _model("Qwen2", hidden_size=64)
    assert share_prompts(model)
    rows = [([3, 4, 5], [(answer + place) % 50 for place in range(6)]) for answer in range(512)]  # all to one prompt
    found = set()
    for _ in range(6):
        model.zero_grad()
        _shared_log_probs(model, rows).square().sum().backward()
        found.add(tuple(float(weight.grad.double().sum()) for weight in model.parameters()))
    assert len(found) == 1


@pytest.mark.parametrize(("family", "settings"), [
    ("Mistral", {"sliding_window": 4096}),  # nothing that short prompts would show
    ("Gemma2", {"head_dim": 4}),
    ("Qwen2", {"attn_implementation": "eager"}),
    ("Falcon", {}),
])
def test_a_family_that_attends_otherwise_is_left_as_it_was(family: str, settings: dict[str, Any]) -> None:
    from saerl_shared_prompts import share_prompts

    model = _model(family, **settings)
    before = model.config._attn_implementation
    expected = _alone_log_probs(model, ROWS)
    assert not share_prompts(model)
    assert model.config._attn_implementation == before
    torch.testing.assert_close(_alone_log_probs(model, ROWS), expected)
