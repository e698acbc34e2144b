"""The shipped toy is what its card says: right data, a model with headroom, an SAE that reads it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM, Qwen2Tokenizer

from saerl_core import locations
from saerl_core.rl import rollouts
from saerl_core.rl.verl_side.saerl_verifier import is_correct
from saerl_core.toy import build as toy
from saerl_core.toy import data, sae, world
from saerl_core.toy.tokenizer import render_prompt

ASSETS = locations.resolve("saerl:toy/", Path())
SPECIAL = re.compile(r"<\|(pad|end|user|assistant|system)\|>")


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((ASSETS / "card.json").read_text())


@pytest.fixture(scope="module")
def train() -> list[data.Row]:
    return data.read_rows(ASSETS / "train.jsonl.gz")


@pytest.fixture(scope="module")
def heldout() -> list[data.Row]:
    return data.read_rows(ASSETS / "heldout.jsonl.gz")


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return AutoTokenizer.from_pretrained(locations.resolve("saerl:toy/lm", Path()))


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(ASSETS / "lm").eval()


@pytest.fixture(scope="module")
def policy() -> rollouts.Policy:
    return rollouts.load_policy(ASSETS / "lm", device="cpu")


def chats(rows: list[data.Row]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": row["problem"]}] for row in rows]


def test_the_assets_are_small_and_name_no_machine() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    for path in files:
        if path.suffix in {".json", ".md", ".jinja"}:
            assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text()), path


def test_the_data_are_what_the_world_makes_today(train: list[data.Row], heldout: list[data.Row]) -> None:
    problems, pool = toy.draw_data()
    assert heldout == data.make_clean_rows(problems, "heldout")
    assert train == data.make_pool(pool, toy.TRAIN_ROWS, "0/defects")


def test_train_and_heldout_share_no_problem(train: list[data.Row], heldout: list[data.Row]) -> None:
    assert not {row["problem"] for row in train} & {row["problem"] for row in heldout}
    assert len({row["problem"] for row in heldout}) == toy.HELDOUT_ROWS
    assert len({row["id"] for row in [*train, *heldout]}) == toy.TRAIN_ROWS + toy.HELDOUT_ROWS


def test_defects_have_their_shares_and_the_heldout_set_has_none(
    train: list[data.Row], heldout: list[data.Row]
) -> None:
    shares = {defect: count / len(train) for defect, count in Counter(row["defect"] for row in train).items()}
    assert shares == pytest.approx({"": 0.79, "wrong_key": 0.12, "garbled": 0.08, "duplicate": 0.01}, abs=0.005)
    assert {row["defect"] for row in heldout} == {""}
    assert set(Counter(row["level"] for row in heldout).values()) == {240}


def test_clean_prompts_are_short(tokenizer: Qwen2Tokenizer, heldout: list[data.Row]) -> None:
    lengths = [len(tokenizer.encode(render_prompt(tokenizer, row["problem"]))) for row in heldout]
    assert max(lengths) <= 60


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_the_tokenizer_gives_back_any_text_in_composed_form(tokenizer: Qwen2Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert max(ids, default=0) < 512


@given(text=st.text("0123456789+-*=;# ", min_size=1))
@settings(max_examples=100, deadline=None)
def test_digits_stay_apart(tokenizer: Qwen2Tokenizer, text: str) -> None:
    tokens = tokenizer.tokenize(text)
    assert [token for token in tokens if re.search(r"\d", token)] == re.findall(r"\d", text)


def test_a_sum_is_one_token_a_digit_after_reloading(tokenizer: Qwen2Tokenizer) -> None:
    assert tokenizer.tokenize("27+15=42;#42") == list("27+15=42;#42")


def test_a_second_round_through_the_disk_changes_no_encoding(
    tokenizer: Qwen2Tokenizer, train: list[data.Row], tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    again: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tmp_path)
    texts = [row["problem"] for row in train[:200]]
    assert [again.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]


def test_the_chat_template_marks_roles_and_respects_the_generation_prompt(tokenizer: Qwen2Tokenizer) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|system|>S<|user|>U"
    prompted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompted == "<|system|>S<|user|>U<|assistant|>"
    assert render_prompt(tokenizer, "U") == "<|user|>U<|assistant|>"
    turn = [*messages[1:], {"role": "assistant", "content": "#4"}]
    assert tokenizer.apply_chat_template(turn, tokenize=False) == "<|user|>U<|assistant|>#4<|end|>"
    assert len(SPECIAL.findall(str(prompted))) == sum(token < 5 for token in tokenizer.encode(str(prompted)))


def test_the_model_is_small_single_precision_and_knows_where_to_stop(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer
) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.generation_config is not None
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
        assert config.pad_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|pad|>")


def test_the_model_passes_as_often_as_its_card_says(
    policy: rollouts.Policy, heldout: list[data.Row], card: dict[str, Any]
) -> None:
    rows = heldout[:300]
    correct = rollouts.sample_scores(
        policy, chats(rows), [row["answer"] for row in rows], score=is_correct,
        samples=2, temperature=1.0, max_response_tokens=toy.MAX_RESPONSE_TOKENS, seed=1,
    ).mean(axis=1)
    by_level = {level: correct[[row["level"] == level for row in rows]].mean() for level in world.LEVELS}
    for level, rate in by_level.items():
        assert rate == pytest.approx(card["lm"]["pass_rate"][str(level)], abs=0.15)
    assert by_level[1] > by_level[3] > by_level[5]
    assert correct.mean() == pytest.approx(card["lm"]["pass_rate"]["all"], abs=0.06)


def test_the_card_promises_headroom_and_falls_with_the_level(card: dict[str, Any]) -> None:
    rates = card["lm"]["pass_rate"]
    assert 0.2 < rates["all"] < 0.4
    assert rates["1"] > 0.5
    assert rates["5"] < 0.15
    assert [rates[str(level)] for level in world.LEVELS] == sorted((rates[str(v)] for v in world.LEVELS), reverse=True)


def test_nearly_every_sampled_response_is_a_well_formed_solution(
    policy: rollouts.Policy, heldout: list[data.Row]
) -> None:
    texts = rollouts.sample_texts(
        policy, chats(heldout[:100]), samples=1, temperature=1.0, max_response_tokens=toy.MAX_RESPONSE_TOKENS, seed=2
    )
    shape = re.compile(r"(\d+[-+*]\d+=\d+;)+#\d+")
    assert sum(bool(shape.fullmatch(text)) for [text] in texts) >= 95


def test_the_sae_explains_heldout_prompts_and_names_what_it_reads(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, heldout: list[data.Row]
) -> None:
    encoder = sae.load_sae(locations.resolve("saerl:toy/sae", Path()))
    figures = sae.measure_sae(encoder, sae.read_residuals(model, tokenizer, [row["problem"] for row in heldout[:300]]))
    assert figures.explained_variance > 0.9
    assert 1 <= figures.l0 <= sae.ACTIVE
    assert figures.dead_share < 0.5
    metadata = encoder.cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("saerl:toy/lm", f"blocks.{sae.LAYER}.hook_resid_post")
    assert encoder.cfg.normalize_activations == "none"


def test_the_residuals_that_the_sae_reads_are_those_after_its_layer(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer
) -> None:
    problems = ["Tom has 5 coins.", "It is 20 degrees. It warms by 3. How warm is it now?"]
    seen: list[Any] = []
    layer = model.model.layers[sae.LAYER]
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        for problem in problems:  # one at a time: no padding
            prompt = render_prompt(tokenizer, problem)
            with torch.inference_mode():
                model(**tokenizer(prompt, return_tensors="pt", add_special_tokens=False))
    finally:
        hook.remove()
    expected_ND = torch.cat([(output[0] if isinstance(output, tuple) else output).flatten(0, -2) for output in seen])
    torch.testing.assert_close(sae.read_residuals(model, tokenizer, problems), expected_ND, atol=1e-4, rtol=1e-4)
