"""Small things that a job needs, made in a second: a policy that verl takes, a manifest, held-out rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import torch

from saerl_core import artifact
from saerl_core.manifest import VERSION

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_tiny_policy(folder: Path, *, seed: int = 0, width: int = 32, layers: int = 2) -> Path:
    """Write model, tokenizer and chat template to `folder`."""
    from tokenizers import pre_tokenizers
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # transformers maps model_type qwen2 to Qwen2Tokenizer: another class breaks silently when it is read back.
    tokenizer: Any = Qwen2Tokenizer(
        vocab={symbol: number for number, symbol in enumerate(symbols)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(symbols),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    return folder


def warm_up(folder: Path, *, steps: int = 120, seed: int = 0) -> Path:
    """Teach a tiny policy the form of an answer, `#` and a random digit, so that some answers are rewarded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rng = random.Random(seed)
    for _ in range(steps):
        rows = []
        for _ in range(32):
            chat = [{"role": "user", "content": f"{rng.randint(0, 9)}+{rng.randint(0, 9)}?"}]
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            rows.append(tokenizer.encode(f"{prompt}#{rng.randint(0, 9)}<|im_end|>"))
        ids = torch.tensor(rows)
        labels = ids.clone()
        labels[:, :-3] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def save_manifest(root: Path, *, batch_size: int, batches: int, seed: int = 0) -> Path:
    """A sealed manifest of one-digit sums: prompt `a+b?`, answer `a` (a goal that a tiny policy can learn)."""
    rng = random.Random(seed)
    rows = [_row(rng, f"p{seed}-{index}", index, index // batch_size, "train") for index in range(batch_size * batches)]
    header = {
        "format": VERSION,
        "batch_size": batch_size,
        "batches": batches,
        "prompts": {"read": len(rows), "kept": len(rows), "dropped": 0},
    }
    with artifact.staging(root) as staged:
        pl.DataFrame(rows).write_parquet(staged / "train.parquet")
        return artifact.seal(staged, "", header, "manifest.json").path


def save_heldout(path: Path, *, prompts: int, seed: int = 1) -> Path:
    """Held-out rows in verl's schema."""
    rng = random.Random(seed)
    pl.DataFrame([_row(rng, f"h{index}", index, 0, "test") for index in range(prompts)]).write_parquet(path)
    return path


def _row(rng: random.Random, prompt_id: str, index: int, batch: int, split: str) -> dict[str, Any]:
    left, right = rng.randint(0, 9), rng.randint(0, 9)
    return {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": f"{left}+{right}?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(left)},
        "extra_info": {
            "id": prompt_id, "key": f"key-{prompt_id}", "index": index, "split": split, "epoch": 0, "batch": batch,
            "cluster": 0, "difficulty": 0.5, "quality": 1.0,
        },
    }
