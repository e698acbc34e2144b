"""Families of decoders: the stream after any layer, read by leaving early, is what the whole model computes there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from saerl_core import backbone
from saerl_core.errors import ModelError

SIZE: dict[str, Any] = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
                        "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
                        "eos_token_id": 2}
GROUPED = {**SIZE, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2": GROUPED,
    "Qwen3": GROUPED,
    "Qwen3Moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 8},
    "Mixtral": {**GROUPED, "num_local_experts": 4},
    "Gemma2": {**GROUPED, "sliding_window": 8},
    "Gemma3Text": {**GROUPED, "sliding_window": 8},
    "Olmo2": SIZE,
    "Phi": SIZE,
    "Phi3": {**SIZE, "num_key_value_heads": 2},
    "GPTNeoX": SIZE,
    "GPT2": {"vocab_size": 512, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_reader: Path) -> Path:
    config = getattr(transformers, f"{request.param}Config")(**FAMILIES[request.param])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tiny_reader.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    return folder


def test_the_stream_read_early_is_that_of_the_whole_model(family: Path) -> None:
    whole = transformers.AutoModel.from_pretrained(family, dtype=torch.float32).eval()
    ids_BT = torch.randint(3, 512, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = whole(input_ids=ids_BT, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(4):
        reader = backbone.load_backbone(family, layer, torch.device("cpu"), torch.float32)
        assert len(backbone.find_layers(whole)) == 4
        with torch.no_grad():
            h_BTD = backbone.residual_stream(reader, ids_BT)
            if layer == 3:  # transformers gives the last one after the final norm
                norm = next(module for name, module in whole.named_children() if "norm" in name or name == "ln_f")
                h_BTD = norm(h_BTD)
        torch.testing.assert_close(h_BTD, hidden[layer + 1], atol=2e-5, rtol=1e-4)


def test_padding_on_the_right_changes_nothing_on_its_left(family: Path) -> None:
    reader = backbone.load_backbone(family, 2, torch.device("cpu"), torch.float32)
    ids_T = torch.randint(3, 512, (15,), generator=torch.Generator().manual_seed(2))
    padded_BT = torch.zeros(1, 24, dtype=torch.long)
    padded_BT[0, :15] = ids_T
    with torch.no_grad():
        alone_BTD, padded_BTD = (backbone.residual_stream(reader, ids) for ids in (ids_T[None], padded_BT))
    torch.testing.assert_close(padded_BTD[:, :15], alone_BTD, atol=2e-5, rtol=1e-4)


def test_a_beginning_that_is_read_once_changes_nothing(family: Path) -> None:
    """Longer and shorter than the sliding windows of those families that have one (8)."""
    reader = backbone.load_backbone(family, 2, torch.device("cpu"), torch.float32)
    ids_BT = torch.randint(3, 512, (3, 24), generator=torch.Generator().manual_seed(3))
    for length in (5, 13):
        ids_BT[:, :length] = ids_BT[0, :length]
        with torch.no_grad():
            beginning = backbone.read_beginning(reader, ids_BT[0, :length].tolist())
            whole_BTD = backbone.residual_stream(reader, ids_BT)
            for _ in range(2):  # what was read of the beginning is not used up
                torch.testing.assert_close(backbone.residual_stream(reader, ids_BT, beginning), whole_BTD, atol=2e-5,
                                           rtol=1e-4)


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = transformers.BartModel(transformers.BartConfig(
        vocab_size=32, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16))
    with pytest.raises(ModelError, match="2 module lists of 2 layers"):
        backbone.find_layers(model)
