"""Pooled features against independent computations: a loop over `output_hidden_states`, and sae-lens's own encode."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from saerl_core import backbone, extract, models, sae, sae_spec
from saerl_core.config import FeaturesConfig
from saerl_core.errors import ConfigError, ModelError
from saerl_core.features import FeatureRows, health
from tests.conftest import ROOT, TOY

PROMPTS = [[{"role": "user", "content": text}] for text in (
    "Tom has 5 coins. Tom earns 3 more. How many coins now?", "2+2", "A bus carries 30 people. 4 get off. " * 5,
    "What?", "It is 20 degrees. It cools by 7.", "日本語 ünï")]


def naive(model_folder: Path, sae_folder: Path, layer: int, prompts: list[Any],
          keep: Callable[[torch.Tensor], torch.Tensor] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One prompt at a time, whole model, all hidden states, sae-lens's dense encode: (mean, max), each [n, d_sae]."""
    from sae_lens import SAE

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    encoder = SAE.load_from_disk(str(sae_folder))
    means, maxima = [], []
    with torch.no_grad():
        for messages in prompts:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            h = model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
            acts = encoder.encode(h if keep is None else h[keep(h)])
            means.append(acts.mean(0).numpy())
            maxima.append(acts.max(0).values.numpy())
    return np.stack(means), np.stack(maxima)


def ours(model_folder: Path, sae_folder: Path, layer: int, prompts: list[Any], **settings: Any) -> FeatureRows:
    config = FeaturesConfig(model="x", sae="y", device="cpu", **settings)
    reader, encoder = extract.load_reader(model_folder, sae_folder, layer, config)
    return extract.extract(reader, encoder, prompts, config)


def dense_max(rows: FeatureRows) -> np.ndarray:
    full = np.zeros((len(rows), rows.d_sae), dtype=np.float32)
    for row in range(len(rows)):
        entries = slice(rows.indptr[row], rows.indptr[row + 1])
        full[row, rows.indices[entries]] = rows.max[entries]
    return full


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 100_000], ids=["one prompt a batch", "some", "all, padded"])
@pytest.mark.parametrize("options", [
    {}, {"apply_b_dec_to_input": False}, {"rescale_acts_by_decoder_norm": True}], ids=str)
def test_topk_features_equal_a_naive_loop_over_hidden_states_and_sae_lens(
        tiny_reader: Path, make_sae: Callable[..., Path], tokens_per_batch: int, options: dict[str, Any]) -> None:
    folder = make_sae("topk", **options)
    rows = ours(tiny_reader, folder, 1, PROMPTS, tokens_per_batch=tokens_per_batch, sink_norm_ratio=1e9)
    mean, maximum = naive(tiny_reader, folder, 1, PROMPTS)
    np.testing.assert_allclose(rows.matrix().toarray(), mean, atol=2e-5)
    np.testing.assert_allclose(dense_max(rows), maximum, atol=2e-5)


@pytest.mark.parametrize("tokens_per_batch", [64, 100_000])
def test_what_a_template_puts_before_every_prompt_is_read_once_and_changes_no_feature(
        tiny_reader: Path, make_sae: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        tokens_per_batch: int) -> None:
    reader = shutil.copytree(tiny_reader, tmp_path / "reader")
    template = reader / "chat_template.jinja"
    system = "{% if messages[0]['content'] != '2+2' %}Tom has 5 coins and a bus.{% endif %}"  # all prompts but one
    template.write_text(system + template.read_text())
    read: list[int] = []
    original = backbone._read
    monkeypatch.setattr(backbone, "_read", lambda reader, ids, cache: (read.append(ids.numel()),
                                                                       original(reader, ids, cache))[-1])
    folder = make_sae("topk")
    rows = ours(reader, folder, 1, PROMPTS, tokens_per_batch=tokens_per_batch, sink_norm_ratio=1e9)
    mean, maximum = naive(reader, folder, 1, PROMPTS)
    np.testing.assert_allclose(rows.matrix().toarray(), mean, atol=2e-5)
    np.testing.assert_allclose(dense_max(rows), maximum, atol=2e-5)
    if tokens_per_batch == 64:
        assert sum(read) < rows.tokens.sum(), "less was computed than there are tokens"
    short = ours(reader, folder, 1, PROMPTS, tokens_per_batch=tokens_per_batch, max_tokens=6)
    assert (short.tokens + short.masked <= 6).all(), "prompts that are cut within the beginning are read whole"


@pytest.mark.parametrize("architecture", ["jumprelu", "standard", "gated"])
def test_saes_without_a_fixed_k_are_read_too(tiny_reader: Path, make_sae: Callable[..., Path],
                                             architecture: str) -> None:
    folder = make_sae(architecture)
    rows = ours(tiny_reader, folder, 1, PROMPTS, sink_norm_ratio=1e9)
    mean, maximum = naive(tiny_reader, folder, 1, PROMPTS)
    np.testing.assert_allclose(rows.matrix().toarray(), mean, atol=2e-5)
    np.testing.assert_allclose(dense_max(rows), maximum, atol=2e-5)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard", "gated"])
def test_encoding_and_decoding_agree_with_sae_lens_however_small_the_chunks(
        make_sae: Callable[..., Path], architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens import SAE

    folder = make_sae(architecture)
    theirs = SAE.load_from_disk(str(folder))
    h_TD = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    acts_TS = theirs.encode(h_TD)
    monkeypatch.setattr(sae, "CHUNK_ELEMENTS", 7 * 96)  # seven tokens at a time
    seen: list[int] = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda bias, h, W: seen.append(len(h)) or addmm(bias, h, W))
    ours = sae.load_sae(folder, torch.device("cpu"), torch.float32)
    values_N, token_N, feature_N = ours.encode(h_TD)
    assert max(seen, default=7) == 7  # gated SAEs multiply otherwise
    assert (token_N.diff() >= 0).all()
    dense_TS = torch.zeros_like(acts_TS)
    dense_TS[token_N, feature_N] = values_N
    torch.testing.assert_close(dense_TS, acts_TS, atol=1e-5, rtol=1e-5)
    assert ours.decode is not None
    torch.testing.assert_close(ours.decode((values_N, token_N, feature_N), 50), theirs.decode(acts_TS), atol=1e-4,
                               rtol=1e-4)


@pytest.mark.parametrize("fvu_tokens", [4, 1000], ids=["a few tokens", "all tokens"])
def test_unexplained_variance_is_that_of_the_prompts_own_words(
        tiny_reader: Path, make_sae: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, fvu_tokens: int) -> None:
    from sae_lens import SAE

    monkeypatch.setattr(extract, "FVU_TOKENS", fvu_tokens)
    folder = make_sae("topk")
    rows = ours(tiny_reader, folder, 1, PROMPTS, sink_norm_ratio=1e9)
    theirs = SAE.load_from_disk(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(tiny_reader)
    model = AutoModelForCausalLM.from_pretrained(tiny_reader, dtype=torch.float32).eval()
    before, after = (tokenizer.encode(text) for text in ("<|user|>", "<|assistant|>"))
    for row, messages in enumerate(PROMPTS):
        ids = models.render(tokenizer, messages, chat_template=True)
        assert ids[: len(before)] == before
        assert ids[-len(after) :] == after
        with torch.no_grad():
            h_TD = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
            words_TD = h_TD[len(before) : -len(after)]
            n, m = len(words_TD), fvu_tokens
            chosen = [i for i in range(n) if (i + 1) * m // n > i * m // n]
            assert len(chosen) == min(n, m)
            x_MD = words_TD[chosen]
            fvu = (x_MD - theirs(x_MD)).square().sum() / (x_MD - x_MD.mean(0)).square().sum()
        assert rows.fvu[row] == pytest.approx(float(fvu), rel=1e-3)


def test_a_row_is_the_same_whatever_is_read_beside_it(tiny_reader: Path, make_sae: Callable[..., Path]) -> None:
    folder = make_sae("topk")
    together = ours(tiny_reader, folder, 1, PROMPTS)
    alone = [ours(tiny_reader, folder, 1, [messages]).fvu[0] for messages in PROMPTS]
    np.testing.assert_allclose(together.fvu, alone, rtol=1e-3)


def test_a_sae_that_normalises_each_token_is_read_but_not_decoded(
        tiny_reader: Path, make_sae: Callable[..., Path]) -> None:
    folder = make_sae("topk", normalize_activations="layer_norm")
    rows = ours(tiny_reader, folder, 1, PROMPTS, sink_norm_ratio=1e9)
    mean, _ = naive(tiny_reader, folder, 1, PROMPTS)
    np.testing.assert_allclose(rows.matrix().toarray(), mean, atol=2e-5)
    assert np.isnan(rows.fvu).all()


def random_text(kind: str, count: int) -> list[str]:
    """Texts that a reader of mathematics has not seen."""
    rng = random.Random(0)
    if kind == "python":
        source = "".join(path.read_text() for path in sorted((ROOT / "saerl_core").glob("*.py")))
        return [source[start : start + 400] for start in range(0, 400 * count, 400)]
    if kind == "chinese":
        return ["".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(80)) for _ in range(count)]
    return [bytes(rng.randrange(256) for _ in range(150)).decode("latin-1") for _ in range(count)]


@pytest.mark.parametrize("kind", ["mathematics", "python", "chinese", "bytes"])
def test_prompts_far_from_what_the_sae_reconstructs_are_warned_of(shared: Path, kind: str) -> None:
    if kind == "mathematics":
        with gzip.open(shared / "data" / "math500.jsonl.gz", "rt") as file:
            texts = [json.loads(line)["problem"] for line in file][:60]
    else:
        texts = random_text(kind, 60)
    prompts = [[{"role": "user", "content": text}] for text in texts]
    rows = ours(shared / "models" / "mathmini", shared / "models" / "mathmini-sae", 3, prompts)
    warned = any("far from what it was trained on" in text for text in health(rows).warnings)
    assert warned == (kind != "mathematics")


def test_the_toy_reads_as_a_naive_loop_does() -> None:
    rows = ours(TOY / "lm", TOY / "sae", 2, PROMPTS[:3], sink_norm_ratio=1e9)
    mean, _ = naive(TOY / "lm", TOY / "sae", 2, PROMPTS[:3])
    np.testing.assert_allclose(rows.matrix().toarray(), mean, atol=2e-4, rtol=1e-3)


def test_attention_sinks_are_masked_by_each_prompts_own_median(tiny_reader: Path,
                                                               make_sae: Callable[..., Path]) -> None:
    folder = make_sae("topk")

    def keep(h: torch.Tensor) -> torch.Tensor:
        norms = h.norm(dim=-1)
        return norms <= 1.2 * norms.median()

    rows = ours(tiny_reader, folder, 1, PROMPTS, sink_norm_ratio=1.2)
    assert rows.masked.sum() > 0
    mean, _ = naive(tiny_reader, folder, 1, PROMPTS, keep)
    np.testing.assert_allclose(rows.matrix().toarray(), mean, atol=2e-5)


def test_long_prompts_are_read_up_to_the_limit_and_counted(tiny_reader: Path, make_sae: Callable[..., Path]) -> None:
    rows = ours(tiny_reader, make_sae("topk"), 1, PROMPTS, max_tokens=8)
    assert rows.tokens.max() <= 8
    assert (rows.cut > 0).sum() == sum(
        len(models.render(AutoTokenizer.from_pretrained(tiny_reader), p, chat_template=True)) > 8 for p in PROMPTS)


def test_layers_above_the_one_read_are_dropped(tiny_reader: Path) -> None:
    reader = backbone.load_backbone(tiny_reader, 0, torch.device("cpu"), torch.float32)
    assert sum(type(module).__name__ == "Qwen2DecoderLayer" for module in reader.model.modules()) == 1


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = extract.batch_by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


def test_rows_of_very_different_length_are_not_padded_to_one() -> None:
    assert extract.batch_by_length([10, 500, 11, 490, 9], 10_000) == [[1, 3, 2, 0, 4]]  # too few to be worth a batch
    long, short = [500] * 6, [50] * 100
    batches = extract.batch_by_length([*long, *short], 10_000)
    assert [len(batch) for batch in batches] == [6, 100]


@pytest.mark.parametrize(("spec", "asked", "complaint"), [
    ({"d_in": 16}, None, r"d_in 16, features\.model has a residual stream of 32"),
    ({"hook": "blocks.7.hook_resid_post"}, None, r"features\.layer = 7: features\.model has 3 layers \(0 to 2\)"),
    ({}, 5, r"features\.layer = 5: features\.model has 3 layers"),
    ({}, 2, r"features\.layer = 2: features\.sae was trained on layer 1"),
    ({"hook": None}, None, r"features\.layer is not set"),
    ({"hook": "blocks.1.hook_mlp_out"}, None, "trained on 'blocks.1.hook_mlp_out'"),
])
def test_an_sae_that_does_not_fit_the_model_is_refused_by_its_shape(
        tiny_reader: Path, make_sae: Callable[..., Path], spec: dict[str, Any], asked: int | None,
        complaint: str) -> None:
    folder = make_sae("topk", **spec)
    with pytest.raises((ConfigError, ModelError), match=complaint):
        sae_spec.choose_layer(sae_spec.read_spec(folder), models.read_spec(tiny_reader), asked)


def test_a_hook_before_a_block_is_the_layer_below(make_sae: Callable[..., Path]) -> None:
    assert sae_spec.read_spec(make_sae("topk", hook="blocks.2.hook_resid_pre")).layer == 1


@pytest.mark.parametrize("damage", ["no weights", "no json", "broken json", "not an object", "broken weights"])
def test_a_damaged_sae_folder_is_refused_in_one_line(make_sae: Callable[..., Path], damage: str) -> None:
    folder = make_sae("topk")
    match damage:
        case "no weights":
            (folder / "sae_weights.safetensors").unlink()
        case "no json":
            (folder / "cfg.json").unlink()
        case "broken json":
            (folder / "cfg.json").write_text("{")
        case "not an object":
            (folder / "cfg.json").write_text("[]")
        case "broken weights":
            (folder / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError) as caught:
        sae.load_sae(folder, torch.device("cpu"), torch.float32) if sae_spec.read_spec(folder) else None
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model there"):
        models.find(str(tmp_path), tmp_path)


@pytest.mark.parametrize("failures", [1, 3])
def test_a_device_that_runs_out_of_memory_gets_smaller_batches(
        tiny_reader: Path, make_sae: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    folder, whole, seen = make_sae("topk"), backbone.residual_stream, []
    expected = ours(tiny_reader, folder, 1, PROMPTS * 16)

    def small(reader: backbone.Backbone, ids_BT: torch.Tensor, beginning: backbone.Beginning | None) -> torch.Tensor:
        seen.append(ids_BT.numel())
        if len(seen) <= failures:
            raise torch.OutOfMemoryError
        return whole(reader, ids_BT, beginning)

    monkeypatch.setattr(backbone, "residual_stream", small)
    rows = ours(tiny_reader, folder, 1, PROMPTS * 16)
    assert max(seen[failures:]) <= max(seen[0] / 2**failures, max(expected.tokens + expected.masked))
    np.testing.assert_allclose(rows.matrix().toarray(), expected.matrix().toarray(), atol=1e-6)
    assert (rows.tokens == expected.tokens).all()


def test_a_prompt_that_no_memory_holds_is_an_error_of_one_line(
        tiny_reader: Path, make_sae: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(backbone, "residual_stream", never)
    with pytest.raises(ModelError, match=r"no memory for a prompt of \d+ tokens: lower features.max_tokens"):
        ours(tiny_reader, make_sae("topk"), 1, PROMPTS)


@pytest.mark.parametrize("elements", [1, 96 * 2, 1 << 20], ids=["prompt by prompt", "two at a time", "all at once"])
def test_pooling_in_small_buffers_gives_the_same_rows(tiny_reader: Path, make_sae: Callable[..., Path],
                                                      monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    folder = make_sae("topk")
    expected = ours(tiny_reader, folder, 1, PROMPTS)
    monkeypatch.setattr(extract, "_POOL_ELEMENTS", elements)
    rows = ours(tiny_reader, folder, 1, PROMPTS)
    for name in ("indptr", "indices", "mean", "max", "tokens"):
        assert (getattr(rows, name) == getattr(expected, name)).all(), name


@pytest.mark.parametrize("chat_template", [True, False])
def test_prompts_rendered_together_are_those_rendered_one_by_one(tiny_reader: Path, chat_template: bool) -> None:
    tokenizer = models.load_tokenizer(tiny_reader)
    together = models.render_all(tokenizer, PROMPTS, chat_template=chat_template)
    assert together == [models.render(tokenizer, chat, chat_template=chat_template) for chat in PROMPTS]
    assert models.render_all(tokenizer, [], chat_template=chat_template) == []
