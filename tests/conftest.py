"""Shared fixtures: tiny models made on the spot, and the real data where it is beside the checkout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("saerl", deadline=None, derandomize=True)  # a slow machine is no failure, nor is a lot
settings.load_profile("saerl")

for _name, _value in {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",
}.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
TOY = ROOT / "saerl_core" / "toy" / "assets"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models that lie beside the checkout where it is developed."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real data (../shared/data) is not beside this checkout")
    return SHARED


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (or raw lines) as a JSONL file and give its path."""

    def write(*rows: Any, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
                        encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tiny_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of 3 layers x 32 with the toy's tokenizer."""
    import shutil

    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True))
    model.save_pretrained(folder)
    for file in (TOY / "lm").iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "vocab", "merges")):
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def make_sae(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Random SAEs in sae-lens's format."""

    def make(architecture: str = "topk", *, d_in: int = 32, d_sae: int = 96, k: int = 8, seed: int = 0,
             hook: str | None = "blocks.1.hook_resid_post", **options: Any) -> Path:
        import torch
        from sae_lens import (
            GatedSAE,
            GatedSAEConfig,
            JumpReLUSAE,
            JumpReLUSAEConfig,
            StandardSAE,
            StandardSAEConfig,
            TopKSAE,
            TopKSAEConfig,
        )
        from sae_lens.saes.sae import SAEMetadata

        torch.manual_seed(seed)
        metadata = SAEMetadata(hook_name=hook) if hook else SAEMetadata()
        common: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "metadata": metadata, **options}
        sae: Any = {
            "topk": lambda: TopKSAE(TopKSAEConfig(k=k, **common)),
            "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**common)),
            "gated": lambda: GatedSAE(GatedSAEConfig(**common)),
            "standard": lambda: StandardSAE(StandardSAEConfig(**common)),
        }[architecture]()
        for parameter in sae.parameters():
            parameter.data = torch.randn_like(parameter) * 0.5
        if architecture == "jumprelu":
            sae.threshold.data = torch.rand_like(sae.threshold)
        folder = tmp_path_factory.mktemp(f"sae-{architecture}")
        sae.save_model(folder)
        return folder

    return make
